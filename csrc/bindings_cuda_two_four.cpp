// sparsekern._C.cuda: packing 2:4 weights, in builds that have GPU launchers.
#if defined(SPARSEKERN_WITH_CUDA)

#include <pybind11/stl.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings_cuda.h"
#include "sparsekern/pack_two_four_cuda.h"
#include "sparsekern/transpose_two_four_cuda.h"

namespace py = pybind11;
namespace sk = sparsekern;

namespace {

// Values as (address, elements) and metadata as (address, bytes).
using Buffer = std::pair<uintptr_t, int64_t>;
using PackingTuple = std::pair<Buffer, Buffer>;

// Type, rows, columns, address and elements of a weight, its packing, and that of its transpose.
using WeightTuple =
    std::tuple<int, int64_t, int64_t, uintptr_t, int64_t, PackingTuple, std::optional<PackingTuple>>;

void check_packing(const PackingTuple& packing, int64_t rows, int64_t columns) {
    check("values: elements", rows * columns / 2, packing.first.second);
    check("metadata: bytes", rows * sk::metadata_bytes(columns), packing.second.second);
}

sk::cuda::TwoFourWeight weight_of(const WeightTuple& tuple) {
    const auto& [type, rows, columns, address, elements, packing, transposed] = tuple;
    check("weight: elements", rows * columns, elements);
    check_packing(packing, rows, columns);
    if (transposed) check_packing(*transposed, columns, rows);
    const PackingTuple none{};
    const PackingTuple& packing_t = transposed ? *transposed : none;
    return {static_cast<sk::WeightType>(type),
            rows,
            columns,
            at<const void>(address),
            at<void>(packing.first.first),
            at<void>(packing.second.first),
            at<void>(packing_t.first.first),
            at<void>(packing_t.second.first)};
}

void pack_two_four(const std::vector<WeightTuple>& tuples, bool transposable, int layout, uintptr_t stream) {
    std::vector<sk::cuda::TwoFourWeight> weights;
    for (const WeightTuple& tuple : tuples) weights.push_back(weight_of(tuple));
    const py::gil_scoped_release release;
    require_ok(sk::cuda::pack_two_four(weights.data(), static_cast<int64_t>(weights.size()), transposable,
                                       static_cast<sk::cuda::TwoFourLayout>(layout),
                                       at<CUstream_st>(stream)));
}

// Bytes of an element, rows, columns, a packing, and that of the transpose.
using PackedTuple = std::tuple<int64_t, int64_t, int64_t, PackingTuple, PackingTuple>;

void transpose_two_four(const std::vector<PackedTuple>& tuples, uintptr_t stream) {
    std::vector<sk::cuda::PackedWeight> weights;
    for (const auto& [element_size, rows, columns, packing, transposed] : tuples) {
        check_packing(packing, rows, columns);
        check_packing(transposed, columns, rows);
        weights.push_back({element_size, rows, columns, at<const void>(packing.first.first),
                           at<const void>(packing.second.first), at<void>(transposed.first.first),
                           at<void>(transposed.second.first)});
    }
    const py::gil_scoped_release release;
    require_ok(sk::cuda::transpose_two_four(weights.data(), static_cast<int64_t>(weights.size()),
                                            at<CUstream_st>(stream)));
}

}  // namespace

void bind_cuda_two_four(py::module_& cuda) {
    cuda.def("pack_two_four", &pack_two_four);
    cuda.def("transpose_two_four", &transpose_two_four);
}

#endif
