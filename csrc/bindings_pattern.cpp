// sparsekern._C.pattern: building, checking and using packed patterns.
#include <pybind11/stl.h>

#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "sparsekern/pattern.h"
#include "sparsekern/pattern_build.h"
#include "sparsekern/pattern_values.h"
#include "sparsekern/update_topology.h"

namespace py = pybind11;
namespace sk = sparsekern;

namespace {

using Address = uintptr_t;
using ReleaseGil = py::call_guard<py::gil_scoped_release>;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

sk::PatternView view(Address data, int64_t words) {
    return sk::PatternView::parse(at<const int32_t>(data), words);
}

sk::WeightShape weight_shape(const std::vector<int64_t>& shape) {
    if (shape.size() != 2 && shape.size() != 4) {
        throw py::value_error("a weight must have 2 or 4 dimensions, got " + std::to_string(shape.size()));
    }
    sk::WeightShape result;
    result.dims = static_cast<int64_t>(shape.size());
    result.rows = shape[0];
    result.cin = shape[1];
    if (result.dims == 4) {
        result.kh = shape[2];
        result.kw = shape[3];
    }
    sk::check_weight_shape(result);
    return result;
}

void bind_builders(py::module_& module) {
    py::class_<sk::PatternBuilder>(module, "Builder")
        .def_property_readonly("words", &sk::PatternBuilder::words)
        .def(
            "fill",
            [](const sk::PatternBuilder& builder, Address data, int64_t words, int threads) {
                builder.fill(at<int32_t>(data), words, threads);
            },
            ReleaseGil());
    module.def("mask_builder", [](Address mask, int64_t elements, const std::vector<int64_t>& shape,
                                  int64_t tile_size, bool complete, int threads) {
        const sk::WeightShape weight = weight_shape(shape);
        const py::gil_scoped_release release;
        auto source = sk::mask_source(at<const unsigned char>(mask), elements, weight);
        return std::make_unique<sk::PatternBuilder>(
            weight, tile_size, std::move(source), threads,
            complete ? sk::StoredTiles::all : sk::StoredTiles::nonempty);
    });
    module.def("random_builder", [](const std::vector<int64_t>& shape, int64_t count, int64_t block_size,
                                    uint64_t seed, int64_t tile_size, int threads) {
        const sk::WeightShape weight = weight_shape(shape);
        const py::gil_scoped_release release;
        auto source = block_size == 1 ? sk::random_source(weight.rows, weight.cols(), count, seed, threads)
                                      : sk::random_block_source(weight.rows, weight.cols(), block_size, count,
                                                                seed, threads);
        return std::make_unique<sk::PatternBuilder>(weight, tile_size, std::move(source), threads);
    });
}

void bind_values(py::module_& module) {
    module.def(
        "to_mask",
        [](Address data, int64_t words, Address mask, int64_t elements, int threads) {
            sk::to_mask(view(data, words), at<unsigned char>(mask), elements, threads);
        },
        ReleaseGil());
    module.def(
        "pack",
        [](Address data, int64_t words, Address dense, int64_t dense_elements, Address values,
           int64_t value_elements, int64_t element_size, int threads) {
            sk::pack(view(data, words), at<const void>(dense), dense_elements, at<void>(values),
                     value_elements, element_size, threads);
        },
        ReleaseGil());
    module.def(
        "unpack",
        [](Address data, int64_t words, Address values, int64_t value_elements, Address dense,
           int64_t dense_elements, int64_t element_size, int threads) {
            sk::unpack(view(data, words), at<const void>(values), value_elements, at<void>(dense),
                       dense_elements, element_size, threads);
        },
        ReleaseGil());
    module.def(
        "transfer",
        [](Address from_data, int64_t from_words, Address from_values, int64_t from_elements, Address to_data,
           int64_t to_words, Address to_values, int64_t to_elements, int64_t element_size, int threads) {
            sk::transfer(view(from_data, from_words), at<const void>(from_values), from_elements,
                         view(to_data, to_words), at<void>(to_values), to_elements, element_size, threads);
        },
        ReleaseGil());
}

// A vector as (address, elements) of both patterns, and the bytes of an element.
using TransferTuple = std::tuple<Address, int64_t, Address, int64_t, int64_t>;

// A vector as (type, address, elements).
using VectorTuple = std::tuple<int, Address, int64_t>;

sk::FloatVector float_vector(const VectorTuple& vector) {
    const auto [type, address, count] = vector;
    return {static_cast<sk::FloatType>(type), at<const void>(address), count};
}

void bind_topology(py::module_& module) {
    module.def(
        "transfer_all",
        [](Address from_data, int64_t from_words, Address to_data, int64_t to_words,
           const std::vector<TransferTuple>& tuples, int threads) {
            std::vector<sk::Transfer> vectors;
            for (const auto& [from, from_elements, to, to_elements, size] : tuples) {
                vectors.push_back({at<const void>(from), from_elements, at<void>(to), to_elements, size});
            }
            sk::transfer_all(view(from_data, from_words), view(to_data, to_words), vectors.data(),
                             static_cast<int64_t>(vectors.size()), threads);
        },
        ReleaseGil());
    module.def(
        "update_topology",
        [](Address data, int64_t words, const VectorTuple& values, const VectorTuple& scores, int64_t count,
           bool by_value, Address result, int64_t result_words, int threads) {
            sk::GrowthScores growth;
            growth.dense = float_vector(scores);
            sk::update_topology(view(data, words), float_vector(values), growth, count,
                                by_value ? sk::Order::largest_value : sk::Order::largest_magnitude,
                                at<int32_t>(result), result_words, threads);
        },
        ReleaseGil());
    module.def(
        "update_topology_listed",
        [](Address data, int64_t words, const VectorTuple& values, const VectorTuple& scores,
           const VectorTuple& active, Address positions, int64_t count, bool by_value, Address result,
           int64_t result_words, int threads) {
            sk::GrowthScores growth;
            growth.is_listed = true;
            growth.active = float_vector(active);
            growth.listed = float_vector(scores);
            growth.positions = at<const int64_t>(positions);
            sk::update_topology(view(data, words), float_vector(values), growth, count,
                                by_value ? sk::Order::largest_value : sk::Order::largest_magnitude,
                                at<int32_t>(result), result_words, threads);
        },
        ReleaseGil());
}

void bind_statistics(py::module_& module) {
    module.def("nnz", [](Address data, int64_t words) { return view(data, words).nnz; });
    module.def(
        "fan_in",
        [](Address data, int64_t words, Address counts, int64_t elements, int threads) {
            sk::fan_in(view(data, words), at<int64_t>(counts), elements, threads);
        },
        ReleaseGil());
    module.def(
        "fan_out",
        [](Address data, int64_t words, int64_t groups, Address counts, int64_t elements, int threads) {
            sk::fan_out(view(data, words), groups, at<int64_t>(counts), elements, threads);
        },
        ReleaseGil());
    module.def(
        "value_rows",
        [](Address data, int64_t words, Address out, int64_t elements, int threads) {
            sk::value_rows(view(data, words), at<int64_t>(out), elements, threads);
        },
        ReleaseGil());
    module.def(
        "value_cols",
        [](Address data, int64_t words, Address out, int64_t elements, int threads) {
            sk::value_cols(view(data, words), at<int64_t>(out), elements, threads);
        },
        ReleaseGil());
    module.def(
        "checksum", [](Address data, int64_t words) { return sk::checksum(at<const int32_t>(data), words); },
        ReleaseGil());
}

}  // namespace

void bind_pattern(py::module_& parent) {
    py::module_ module = parent.def_submodule("pattern", "Building, checking and using packed patterns");
    module.def(
        "validate",
        [](Address data, int64_t words, int threads) { sk::validate(view(data, words), threads); },
        ReleaseGil());
    bind_builders(module);
    bind_values(module);
    bind_topology(module);
    bind_statistics(module);
}
