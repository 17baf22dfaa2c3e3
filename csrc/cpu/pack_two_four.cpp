// Packing 2:4 weights: strips of rows for the threads, each packed by the kernels of the instruction set.
#include "sparsekern/pack_two_four.h"

#include <omp.h>

#include <algorithm>
#include <string>

#include "buffer.h"
#include "pack_two_four_check.h"
#include "pack_two_four_kernels.h"
#include "panels.h"
#include "sparsekern/isa.h"
#include "team.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace sparsekern {

namespace portable {
PackTwoFour pack_two_four_kernels();
}
#if !defined(SPARSEKERN_NO_X86)
namespace avx2 {
PackTwoFour pack_two_four_kernels();
}
namespace avx512 {
PackTwoFour pack_two_four_kernels();
}
#endif

namespace {

PackTwoFour kernels_in_use() {
    switch (current_isa()) {
#if !defined(SPARSEKERN_NO_X86)
        case Isa::avx512:
            return avx512::pack_two_four_kernels();
        case Isa::avx2:
            return avx2::pack_two_four_kernels();
#endif
        default:
            return portable::pack_two_four_kernels();
    }
}

// Subnormal numbers count while it lives. A caller may have had them flushed to zero on its own thread, and
// then results would differ between threads.
class SubnormalNumbers {
#if defined(__SSE__)
public:
    SubnormalNumbers() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~kFlush); }
    ~SubnormalNumbers() { _mm_setcsr(before_); }
    SubnormalNumbers(const SubnormalNumbers&) = delete;

private:
    static constexpr unsigned kFlush = 0x8040;  // of results, and of operands
    const unsigned before_;
#endif
};

constexpr int64_t kStripRows = 4 * kStripTiles;
// Columns that are packed at a time: a strip's scratch stays in a private cache.
constexpr int64_t kChunkColumns = 1024;

// From this many bytes on, a transposed packing is written around the caches, which cannot hold it until it
// is used: each of its lines would have to be read before it is written.
constexpr int64_t kStreamedBytes = int64_t{16} << 20;

bool is_streamed(const OutputPacking& transposed, TwoFourShape shape, int64_t element_size) {
    constexpr int64_t line = 64;
    const int64_t row = shape.rows / 2 * element_size, strip = kStripRows / 2 * element_size;
    const bool aligned = reinterpret_cast<uintptr_t>(transposed.values.data) % line == 0 && row % line == 0;
    return aligned && strip % line == 0 && shape.columns * row >= kStreamedBytes;
}

// The packing of the part of the matrix that begins at a row and a column.
PackedRows part(const OutputPacking& packed, int64_t columns, int64_t element_size, int64_t row,
                int64_t column) {
    PackedRows rows;
    rows.value_stride = columns / 2 * element_size;
    rows.metadata_stride = metadata_bytes(columns);
    rows.values =
        static_cast<unsigned char*>(packed.values.data) + row * rows.value_stride + column / 2 * element_size;
    rows.metadata = packed.metadata + row * rows.metadata_stride + column / 8;
    return rows;
}

// Calls pack(row, rows, column, columns, scratch) for parts of the matrix until it returns false; whether it
// never did. Each thread has `words` words of scratch. Parts follow one another to the right, or downward,
// which is along the rows of the transpose.
template <class Pack>
bool for_each_part(TwoFourShape shape, bool downward, int64_t words, int threads, const Pack& pack) {
    const int64_t strips = (shape.rows + kStripRows - 1) / kStripRows;
    const int64_t chunks = (shape.columns + kChunkColumns - 1) / kChunkColumns;
    bool all = true;
    Team team;
#pragma omp parallel num_threads(threads) reduction(&& : all)
    {
        auto scratch = team.scratch([&] { return Buffer<uint64_t>(words); });
        const SubnormalNumbers subnormal;
        const int64_t begin = strips * chunks * omp_get_thread_num() / omp_get_num_threads();
        const int64_t end = strips * chunks * (omp_get_thread_num() + 1) / omp_get_num_threads();
        for (int64_t i = begin; scratch && i < end && all; ++i) {
            const int64_t row = (downward ? i % strips : i / chunks) * kStripRows;
            const int64_t column = (downward ? i / strips : i % chunks) * kChunkColumns;
            all = pack(row, std::min(kStripRows, shape.rows - row), column,
                       std::min(kChunkColumns, shape.columns - column), scratch->data());
        }
    }
    team.rethrow();
    return all;
}

// Names the first infinite or NaN weight; there is one.
template <class Format>
[[noreturn]] void refuse_nonfinite(const void* data, TwoFourShape shape) {
    const auto* const weight = static_cast<const typename Format::Storage*>(data);
    int64_t at = 0;
    while (at + 1 < shape.rows * shape.columns && is_finite<Format>(weight[at])) ++at;
    const bool is_nan = magnitude_bits<Format>(weight[at]) > Format::kInfinity;
    const bool negative = (weight[at] & Format::kSign) != 0;
    throw std::invalid_argument(std::string("weight: expected finite values, got ") +
                                (negative && !is_nan ? "-" : "") + (is_nan ? "nan" : "inf") + " at row " +
                                std::to_string(at / shape.columns) + ", column " +
                                std::to_string(at % shape.columns));
}

[[noreturn]] void refuse_nonfinite(WeightType type, const void* data, TwoFourShape shape) {
    switch (type) {
        case WeightType::float16:
            refuse_nonfinite<Float16Format>(data, shape);
        case WeightType::bfloat16:
            refuse_nonfinite<BFloat16Format>(data, shape);
        case WeightType::float32:
            refuse_nonfinite<Float32Format>(data, shape);
        default:
            refuse_nonfinite<Float64Format>(data, shape);
    }
}

void pack(WeightType type, TwoFourShape shape, InputValues weight, const OutputPacking& packed,
          const OutputPacking* transposed, bool transposable, int threads) {
    const int64_t size = weight_bytes(type);
    const auto* const data = static_cast<const unsigned char*>(weight.data);
    const PackTwoFour kernels = kernels_in_use();
    const auto tiles = kernels.tiles[static_cast<int>(type)];
    const auto groups = kernels.rows[static_cast<int>(type)];
    const int64_t chunk_tiles = std::min(kChunkColumns, shape.columns) / 4;
    const int64_t words = transposed != nullptr ? scratch_words(chunk_tiles, size) : 0;
    const bool streamed = transposed != nullptr && is_streamed(*transposed, shape, size);
    const auto pack_part = [&](int64_t row, int64_t rows, int64_t column, int64_t columns,
                               uint64_t* scratch) {
        const unsigned char* const from = data + (row * shape.columns + column) * size;
        const int64_t stride = shape.columns * size;
        const PackedRows to = part(packed, shape.columns, size, row, column);
        if (!transposable) return groups({from, stride, rows, columns / 4, to});
        if (transposed == nullptr) return tiles({from, stride, rows / 4, columns / 4, to, {}, nullptr});
        PackedRows to_transposed = part(*transposed, shape.rows, size, column, row);
        to_transposed.streamed = streamed;
        return tiles({from, stride, rows / 4, columns / 4, to, to_transposed, scratch});
    };
    // Masks of tiles take some four times as long as those of groups.
    const double elements = static_cast<double>(shape.rows * shape.columns) * (transposable ? 4 : 1);
    threads = worthwhile_threads(threads, 0, elements);
    if (!for_each_part(shape, transposed != nullptr, words, threads, pack_part)) {
        refuse_nonfinite(type, weight.data, shape);
    }
}

}  // namespace

void pack_two_four(WeightType type, TwoFourShape shape, InputValues weight, OutputPacking packed,
                   int threads) {
    check_threads(threads);
    const int64_t size = weight_bytes(type);
    check_shape(shape, false);
    check_values("weight", weight, shape.rows * shape.columns, size);
    check_packing("values", "metadata", packed, shape, size);
    pack(type, shape, weight, packed, nullptr, false, threads);
}

void pack_transposable(WeightType type, TwoFourShape shape, InputValues weight, OutputPacking packed,
                       const OutputPacking* transposed, int threads) {
    check_threads(threads);
    const int64_t size = weight_bytes(type);
    check_shape(shape, true);
    check_values("weight", weight, shape.rows * shape.columns, size);
    check_packing("values", "metadata", packed, shape, size);
    if (transposed != nullptr) {
        check_packing("values_t", "metadata_t", *transposed, {shape.columns, shape.rows}, size);
    }
    pack(type, shape, weight, packed, transposed, true, threads);
}

}  // namespace sparsekern
