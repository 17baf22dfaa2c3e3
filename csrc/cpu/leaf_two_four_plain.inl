// The kernels that pick features, element by element, for vectors that are too short to gain from them.

#include "leaf_two_four_arrange.inl"

namespace sparsekern {
namespace SPARSEKERN_ISA {
namespace {

template <class A>
void dot_block(const DotWork<A>& given, bool fresh) {
    const DotWork<A> work = given;
    for (int64_t row = 0; row < work.block.rows; ++row) {
        const unsigned char* metadata = work.block.metadata + row * work.block.metadata_stride;
        const A* y = work.y + row / kDotRows * work.samples * 2 * kDotRows + row % kDotRows * 2;
        A* out = work.out + row * work.pitch;
        for (int64_t i = 0; i < work.block.columns / 2; ++i) {
            const int64_t column = i / 2 * 4 + (metadata[i / 4] >> i % 4 * 2 & 3);
            const A* x = work.x + column / kStep<A> * work.samples * kStep<A> + column % kStep<A>;
            A sum = A(0);
            for (int64_t m = 0; m < work.samples; ++m) sum += y[m * 2 * kDotRows] * x[m * kStep<A>];
            out[i] = fresh ? sum : out[i] + sum;
        }
    }
}

}  // namespace
}  // namespace SPARSEKERN_ISA
}  // namespace sparsekern
