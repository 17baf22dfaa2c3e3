// sparsekern._C.two_four: the products of 2:4 weights.
#include "bindings.h"
#include "bindings_arguments.h"
#include "sparsekern/two_four_linear.h"

namespace py = pybind11;
namespace sk = sparsekern;

namespace {

sk::Values<const unsigned char*> metadata_at(Address data, int64_t count) {
    return {reinterpret_cast<const unsigned char*>(data), count};
}

sk::TwoFourWeight weight_at(Address values, int64_t value_count, Address metadata, int64_t metadata_count,
                            int64_t rows, int64_t cols) {
    return {input(values, value_count), metadata_at(metadata, metadata_count), rows, cols};
}

void bind_products(py::module_& module) {
    module.def(
        "linear",
        [](int dtype, Address values, int64_t value_count, Address metadata, int64_t metadata_count,
           int64_t rows, int64_t cols, Address x, int64_t x_count, int64_t m, int64_t x_row_stride,
           int64_t x_col_stride, Address bias, int64_t bias_count, Address y, int64_t y_count, int threads) {
            sk::two_four_linear(dtype_of(dtype),
                                weight_at(values, value_count, metadata, metadata_count, rows, cols),
                                input(x, x_count, m, cols, x_row_stride, x_col_stride),
                                input(bias, bias_count), output(y, y_count, m, rows), threads);
        },
        ReleaseGil());
    module.def(
        "linear_grad_input",
        [](int dtype, Address values, int64_t value_count, Address metadata, int64_t metadata_count,
           int64_t rows, int64_t cols, Address grad_y, int64_t grad_y_count, int64_t m, int64_t row_stride,
           int64_t col_stride, Address grad_x, int64_t grad_x_count, int threads) {
            sk::two_four_linear_grad_input(
                dtype_of(dtype), weight_at(values, value_count, metadata, metadata_count, rows, cols),
                input(grad_y, grad_y_count, m, rows, row_stride, col_stride),
                output(grad_x, grad_x_count, m, cols), threads);
        },
        ReleaseGil());
    module.def(
        "linear_grad_values",
        [](int dtype, Address grad_y, int64_t grad_y_count, int64_t m, int64_t y_row_stride,
           int64_t y_col_stride, Address x, int64_t x_count, int64_t x_row_stride, int64_t x_col_stride,
           Address metadata, int64_t metadata_count, int64_t rows, int64_t cols, Address grad_values,
           int64_t value_count, int threads) {
            const sk::TwoFourGradient grad = {output(grad_values, value_count),
                                              metadata_at(metadata, metadata_count), rows, cols};
            sk::two_four_linear_grad_values(
                dtype_of(dtype), input(grad_y, grad_y_count, m, rows, y_row_stride, y_col_stride),
                input(x, x_count, m, cols, x_row_stride, x_col_stride), grad, threads);
        },
        ReleaseGil());
}

// An x_scale of address 0 asks for one of each row.
void bind_int8(py::module_& module) {
    module.def(
        "linear_int8",
        [](int dtype, Address values, int64_t value_count, Address metadata, int64_t metadata_count,
           int64_t rows, int64_t cols, Address scale, int64_t scale_count, Address x, int64_t x_count,
           int64_t m, int64_t x_row_stride, int64_t x_col_stride, Address x_scale, Address bias,
           int64_t bias_count, Address y, int64_t y_count, int threads) {
            const sk::TwoFourInt8Weight weight = {
                weight_at(values, value_count, metadata, metadata_count, rows, cols),
                {reinterpret_cast<const float*>(scale), scale_count}};
            sk::two_four_linear_int8(dtype_of(dtype), weight,
                                     input(x, x_count, m, cols, x_row_stride, x_col_stride),
                                     reinterpret_cast<const float*>(x_scale), input(bias, bias_count),
                                     output(y, y_count, m, rows), threads);
        },
        ReleaseGil());
}

}  // namespace

void bind_two_four_linear(py::module_& module) {
    // Another file may have made the submodule.
    py::module_ two_four = module.def_submodule("two_four");
    bind_products(two_four);
    bind_int8(two_four);
}
