// sparsekern._C: the compute kernels and the choice of instruction set.
#include <string>

#include "bindings.h"
#include "bindings_arguments.h"
#include "sparsekern/conv2d.h"
#include "sparsekern/isa.h"
#include "sparsekern/linear.h"

namespace py = pybind11;
namespace sk = sparsekern;

namespace {

void bind_linear(py::module_& module) {
    module.def(
        "linear",
        [](int dtype, Address pattern, int64_t words, Address values, int64_t value_count, Address x,
           int64_t x_count, int64_t m, int64_t x_row_stride, int64_t x_col_stride, Address bias,
           int64_t bias_count, Address y, int64_t y_count, int threads) {
            const sk::PatternView p = view(pattern, words);
            sk::linear(dtype_of(dtype), p, input(values, value_count),
                       input(x, x_count, m, p.cols, x_row_stride, x_col_stride), input(bias, bias_count),
                       output(y, y_count, m, p.rows), threads);
        },
        ReleaseGil());
    module.def(
        "linear_grad_input",
        [](int dtype, Address pattern, int64_t words, Address values, int64_t value_count, Address grad_y,
           int64_t grad_y_count, int64_t m, int64_t row_stride, int64_t col_stride, Address grad_x,
           int64_t grad_x_count, int threads) {
            const sk::PatternView p = view(pattern, words);
            sk::linear_grad_input(dtype_of(dtype), p, input(values, value_count),
                                  input(grad_y, grad_y_count, m, p.rows, row_stride, col_stride),
                                  output(grad_x, grad_x_count, m, p.cols), threads);
        },
        ReleaseGil());
    module.def(
        "linear_grad_values",
        [](int dtype, Address pattern, int64_t words, Address grad_y, int64_t grad_y_count, int64_t m,
           int64_t y_row_stride, int64_t y_col_stride, Address x, int64_t x_count, int64_t x_row_stride,
           int64_t x_col_stride, Address grad_values, int64_t value_count, int threads) {
            const sk::PatternView p = view(pattern, words);
            sk::linear_grad_values(dtype_of(dtype), p,
                                   input(grad_y, grad_y_count, m, p.rows, y_row_stride, y_col_stride),
                                   input(x, x_count, m, p.cols, x_row_stride, x_col_stride),
                                   output(grad_values, value_count), threads);
        },
        ReleaseGil());
}

void bind_conv2d(py::module_& module) {
    py::class_<sk::Conv2dShape>(module, "Conv2dShape")
        .def(py::init([](int64_t batch, int64_t groups, int64_t height, int64_t width, int64_t stride_h,
                         int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h,
                         int64_t dilation_w) {
            return sk::Conv2dShape{batch,
                                   groups,
                                   height,
                                   width,
                                   {stride_h, stride_w},
                                   {padding_h, padding_w},
                                   {dilation_h, dilation_w}};
        }));
    module.def(
        "conv2d",
        [](int dtype, Address pattern, int64_t words, const sk::Conv2dShape& shape, Address values,
           int64_t value_count, Address x, int64_t x_count, Address bias, int64_t bias_count, Address y,
           int64_t y_count, int threads) {
            sk::conv2d(dtype_of(dtype), view(pattern, words), shape, input(values, value_count),
                       input(x, x_count), input(bias, bias_count), output(y, y_count), threads);
        },
        ReleaseGil());
    module.def(
        "conv2d_grad_input",
        [](int dtype, Address pattern, int64_t words, const sk::Conv2dShape& shape, Address values,
           int64_t value_count, Address grad_y, int64_t grad_y_count, Address grad_x, int64_t grad_x_count,
           int threads) {
            sk::conv2d_grad_input(dtype_of(dtype), view(pattern, words), shape, input(values, value_count),
                                  input(grad_y, grad_y_count), output(grad_x, grad_x_count), threads);
        },
        ReleaseGil());
    module.def(
        "conv2d_grad_values",
        [](int dtype, Address pattern, int64_t words, const sk::Conv2dShape& shape, Address grad_y,
           int64_t grad_y_count, Address x, int64_t x_count, Address grad_values, int64_t value_count,
           int threads) {
            sk::conv2d_grad_values(dtype_of(dtype), view(pattern, words), shape, input(grad_y, grad_y_count),
                                   input(x, x_count), output(grad_values, value_count), threads);
        },
        ReleaseGil());
}

}  // namespace

void bind_compute(py::module_& module) {
    module.def("isa_levels", [] {
        py::list names;
        for (const sk::Isa isa : sk::isa_levels()) names.append(sk::isa_name(isa));
        return names;
    });
    module.def("get_isa", [] { return std::string(sk::isa_name(sk::current_isa())); });
    module.def("set_isa", [](const std::string& name) { sk::set_isa(sk::isa_from_name(name)); });
    bind_linear(module);
    bind_conv2d(module);
}
