// sparsekern._C.cuda: the GPU launchers, in builds that have them.
#include "bindings.h"

#if defined(SPARSEKERN_WITH_CUDA)

#include <pybind11/stl.h>

#include <cstring>
#include <string>
#include <vector>

#include "sparsekern/cuda_status.h"
#include "sparsekern/transfer_cuda.h"

namespace py = pybind11;
namespace sk = sparsekern;

namespace {

// `header` is a host copy of the pattern's first words; `data` is in device memory.
sk::cuda::DevicePattern device_pattern(const std::vector<int32_t>& header, uintptr_t data, int64_t words) {
    if (static_cast<int64_t>(header.size()) != sk::kPatternHeaderWords ||
        header[sk::kWordMagic] != sk::kPatternMagic) {
        throw py::value_error("header: expected the first " + std::to_string(sk::kPatternHeaderWords) +
                              " words of a pattern");
    }
    sk::PatternSizes sizes;
    sizes.tile_size = header[sk::kWordTileSize];
    sizes.rows = header[sk::kWordRows];
    sizes.cols = header[sk::kWordCols];
    sizes.tile_rows = header[sk::kWordTileRows];
    sizes.tile_cols = header[sk::kWordTileCols];
    sizes.tiles = header[sk::kWordTiles];
    std::memcpy(&sizes.nnz, &header[sk::kWordNnz], sizeof(sizes.nnz));
    if (sk::pattern_sections(sizes).total_words != words) {
        throw py::value_error("pattern: expected " + std::to_string(sk::pattern_sections(sizes).total_words) +
                              " words, got " + std::to_string(words));
    }
    return {sizes, reinterpret_cast<const int32_t*>(data)};
}

void transfer(const std::vector<int32_t>& from_header, uintptr_t from, int64_t from_words,
              uintptr_t from_values, int64_t from_count, const std::vector<int32_t>& to_header, uintptr_t to,
              int64_t to_words, uintptr_t to_values, int64_t to_count, int64_t element_size,
              uintptr_t stream) {
    const sk::cuda::DevicePattern source = device_pattern(from_header, from, from_words);
    const sk::cuda::DevicePattern target = device_pattern(to_header, to, to_words);
    if (from_count != source.sizes.nnz || to_count != target.sizes.nnz) {
        throw py::value_error("values: expected " + std::to_string(source.sizes.nnz) + " and " +
                              std::to_string(target.sizes.nnz) + " elements, got " +
                              std::to_string(from_count) + " and " + std::to_string(to_count));
    }
    const py::gil_scoped_release release;
    const sk::cuda::Status status = sk::cuda::transfer(source, reinterpret_cast<const void*>(from_values),
                                                       target, reinterpret_cast<void*>(to_values),
                                                       element_size, reinterpret_cast<CUstream_st*>(stream));
    if (status != sk::cuda::Status::ok) throw std::runtime_error(sk::cuda::status_message(status));
}

}  // namespace

void bind_cuda(py::module_& module) {
    module.def("cuda_archs", [] { return std::string(SPARSEKERN_CUDA_ARCHS); });
    py::module_ cuda = module.def_submodule("cuda", "GPU launchers");
    cuda.def("transfer", &transfer);
}

#else

void bind_cuda(pybind11::module_&) {}

#endif
