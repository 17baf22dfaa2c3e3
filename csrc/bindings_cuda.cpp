// sparsekern._C.cuda: the GPU launchers, in builds that have them.
#include "bindings.h"

#if defined(SPARSEKERN_WITH_CUDA)

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings_cuda.h"
#include "sparsekern/grid.h"
#include "sparsekern/update_topology_cuda.h"

namespace py = pybind11;
namespace sk = sparsekern;

namespace {

// Tile size, rows, columns, tile rows, tile columns, tiles and nnz: what a pattern in device memory says in
// its header, which the host cannot read without waiting.
using SizesTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

// A pattern in device memory as its sizes, address and words.
using PatternTuple = std::tuple<SizesTuple, uintptr_t, int64_t>;

// A vector as (type, address, elements).
using VectorTuple = std::tuple<int, uintptr_t, int64_t>;

// Addresses of both ends, and the bytes of an element.
using TransferTuple = std::tuple<uintptr_t, int64_t, uintptr_t, int64_t, int64_t>;

// Pattern, (cin, kh * kw), values, scores, active scores and positions (or none), count, result and its
// words.
using LayerTuple = std::tuple<PatternTuple, std::tuple<int64_t, int64_t>, VectorTuple, VectorTuple,
                              std::optional<VectorTuple>, uintptr_t, int64_t, uintptr_t, int64_t>;

sk::cuda::DevicePattern device_pattern(const PatternTuple& pattern) {
    const auto& [given, data, words] = pattern;
    sk::PatternSizes sizes;
    std::tie(sizes.tile_size, sizes.rows, sizes.cols, sizes.tile_rows, sizes.tile_cols, sizes.tiles,
             sizes.nnz) = given;
    check("pattern: words", sk::pattern_sections(sizes).total_words, words);
    return {sizes, at<const int32_t>(data)};
}

sk::FloatVector float_vector(const VectorTuple& vector) {
    const auto [type, address, count] = vector;
    return {static_cast<sk::FloatType>(type), at<const void>(address), count};
}

void transfer(const PatternTuple& from, const PatternTuple& to, const std::vector<TransferTuple>& tuples,
              uintptr_t stream) {
    const sk::cuda::DevicePattern source = device_pattern(from), target = device_pattern(to);
    std::vector<sk::cuda::TransferVector> vectors;
    for (const auto& [from_values, from_count, to_values, to_count, element_size] : tuples) {
        check("values: elements", source.sizes.nnz, from_count);
        check("result: elements", target.sizes.nnz, to_count);
        vectors.push_back({at<const void>(from_values), at<void>(to_values), element_size});
    }
    const py::gil_scoped_release release;
    require_ok(sk::cuda::transfer(source, target, vectors.data(), static_cast<int64_t>(vectors.size()),
                                  at<CUstream_st>(stream)));
}

std::vector<sk::cuda::TopologyLayer> topology_layers(const std::vector<LayerTuple>& tuples) {
    std::vector<sk::cuda::TopologyLayer> layers;
    for (const auto& [pattern, order, values, scores, active, positions, count, result, words] : tuples) {
        sk::cuda::TopologyLayer layer;
        layer.pattern = device_pattern(pattern);
        std::tie(layer.cin, layer.positions) = order;
        layer.values = float_vector(values);
        layer.scores.is_listed = active.has_value();
        (layer.scores.is_listed ? layer.scores.listed : layer.scores.dense) = float_vector(scores);
        if (active) layer.scores.active = float_vector(*active);
        layer.scores.positions = at<const int64_t>(positions);
        layer.count = count;
        layer.result = at<int32_t>(result);
        const sk::PatternSizes& s = layer.pattern.sizes;
        check("result: words",
              sk::pattern_sections(sk::complete_sizes(s.rows, s.cols, s.tile_size, s.nnz)).total_words,
              words);
        layers.push_back(layer);
    }
    return layers;
}

int64_t update_topology_workspace(const std::vector<LayerTuple>& tuples) {
    const std::vector<sk::cuda::TopologyLayer> layers = topology_layers(tuples);
    return sk::cuda::update_topology_workspace(layers.data(), static_cast<int64_t>(layers.size()));
}

void update_topology(const std::vector<LayerTuple>& tuples, bool by_value, uintptr_t workspace, int64_t bytes,
                     uintptr_t stream) {
    const std::vector<sk::cuda::TopologyLayer> layers = topology_layers(tuples);
    const sk::Order order = by_value ? sk::Order::largest_value : sk::Order::largest_magnitude;
    const py::gil_scoped_release release;
    require_ok(sk::cuda::update_topology(layers.data(), static_cast<int64_t>(layers.size()), order,
                                         at<void>(workspace), bytes, at<CUstream_st>(stream)));
}

}  // namespace

void bind_cuda(py::module_& module) {
    module.def("cuda_archs", [] { return std::string(SPARSEKERN_CUDA_ARCHS); });
    py::module_ cuda = module.def_submodule("cuda", "GPU launchers");
    cuda.def("transfer", &transfer);
    cuda.def("update_topology_workspace", &update_topology_workspace);
    cuda.def("update_topology", &update_topology);
    bind_cuda_two_four(cuda);
}

#else

void bind_cuda(pybind11::module_&) {}

#endif
