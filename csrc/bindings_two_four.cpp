// sparsekern._C.two_four: packing 2:4 sparse weights.
#include <pybind11/stl.h>

#include <optional>
#include <utility>

#include "bindings.h"
#include "bindings_arguments.h"
#include "sparsekern/pack_two_four.h"

namespace py = pybind11;
namespace sk = sparsekern;

namespace {

// Values as (address, elements) and metadata as (address, bytes).
using Buffer = std::pair<Address, int64_t>;
using PackingTuple = std::pair<Buffer, Buffer>;

sk::InputPacking input_packing(const PackingTuple& packing) {
    const auto& [values, metadata] = packing;
    return {input(values.first, values.second), reinterpret_cast<const unsigned char*>(metadata.first),
            metadata.second};
}

sk::OutputPacking output_packing(const PackingTuple& packing) {
    const auto& [values, metadata] = packing;
    return {output(values.first, values.second), reinterpret_cast<unsigned char*>(metadata.first),
            metadata.second};
}

void bind_packing(py::module_& module) {
    module.def(
        "pack",
        [](int type, int64_t rows, int64_t columns, Address weight, int64_t elements,
           const PackingTuple& packed, int threads) {
            sk::pack_two_four(static_cast<sk::WeightType>(type), {rows, columns}, input(weight, elements),
                              output_packing(packed), threads);
        },
        ReleaseGil());
    module.def(
        "pack_transposable",
        [](int type, int64_t rows, int64_t columns, Address weight, int64_t elements,
           const PackingTuple& packed, const std::optional<PackingTuple>& transposed, int threads) {
            const sk::OutputPacking to = transposed ? output_packing(*transposed) : sk::OutputPacking{};
            sk::pack_transposable(static_cast<sk::WeightType>(type), {rows, columns}, input(weight, elements),
                                  output_packing(packed), transposed ? &to : nullptr, threads);
        },
        ReleaseGil());
}

void bind_values(py::module_& module) {
    module.def(
        "gather",
        [](int64_t element_size, int64_t rows, int64_t columns, Address dense, int64_t elements,
           Address metadata, int64_t bytes, Address values, int64_t value_elements, int threads) {
            sk::gather_two_four(element_size, {rows, columns}, input(dense, elements),
                                reinterpret_cast<const unsigned char*>(metadata), bytes,
                                output(values, value_elements), threads);
        },
        ReleaseGil());
    module.def(
        "unpack",
        [](int64_t element_size, int64_t rows, int64_t columns, const PackingTuple& packed, Address dense,
           int64_t elements, int threads) {
            sk::unpack_two_four(element_size, {rows, columns}, input_packing(packed), output(dense, elements),
                                threads);
        },
        ReleaseGil());
    module.def(
        "check_metadata",
        [](int64_t rows, int64_t columns, Address metadata, int64_t bytes) {
            sk::check_metadata({rows, columns}, reinterpret_cast<const unsigned char*>(metadata), bytes);
        },
        ReleaseGil());
    module.def(
        "to_cutlass",
        [](int64_t element_size, int64_t rows, int64_t columns, const PackingTuple& packed,
           const PackingTuple& cutlass, int threads) {
            sk::to_cutlass(element_size, {rows, columns}, input_packing(packed), output_packing(cutlass),
                           threads);
        },
        ReleaseGil());
    module.def(
        "from_cutlass",
        [](int64_t element_size, int64_t rows, int64_t columns, const PackingTuple& cutlass,
           const PackingTuple& packed, int threads) {
            sk::from_cutlass(element_size, {rows, columns}, input_packing(cutlass), output_packing(packed),
                             threads);
        },
        ReleaseGil());
}

}  // namespace

void bind_two_four(py::module_& parent) {
    py::module_ module = parent.def_submodule("two_four", "Packing 2:4 sparse weights");
    bind_packing(module);
    bind_values(module);
}
