// sparsekern._C: the passes that find where a pattern should grow.
#include <string>

#include "bindings.h"
#include "bindings_arguments.h"
#include "sparsekern/conv2d.h"
#include "sparsekern/grow_candidates.h"

namespace py = pybind11;
namespace sk = sparsekern;

namespace {

sk::Values<int64_t*> counts(Address data, int64_t count) { return {reinterpret_cast<int64_t*>(data), count}; }

}  // namespace

void bind_grow_candidates(py::module_& module) {
    py::class_<sk::GrowCandidates>(module, "GrowCandidates")
        .def(
            "count",
            [](const sk::GrowCandidates& passes, int64_t prefix, int shift, int bits, Address data,
               int64_t count) { passes.count({prefix, shift, bits}, counts(data, count)); },
            ReleaseGil())
        .def(
            "count_ties",
            [](const sk::GrowCandidates& passes, int64_t key, Address data, int64_t count) {
                passes.count_ties(key, counts(data, count));
            },
            ReleaseGil())
        .def(
            "emit",
            [](const sk::GrowCandidates& passes, int64_t least, int64_t tied_rows, Address positions,
               int64_t position_count, Address scores, int64_t score_count) {
                return passes.emit(least, tied_rows,
                                   {output(positions, position_count), output(scores, score_count)});
            },
            ReleaseGil());
    module.def(
        "grow_candidates",
        [](int dtype, Address pattern, int64_t words, Address grad_y, int64_t grad_y_count, int64_t m,
           int64_t y_row_stride, int64_t y_col_stride, Address x, int64_t x_count, int64_t x_row_stride,
           int64_t x_col_stride, int threads) {
            const sk::PatternView p = view(pattern, words);
            return sk::grow_candidates(dtype_of(dtype), p,
                                       input(grad_y, grad_y_count, m, p.rows, y_row_stride, y_col_stride),
                                       input(x, x_count, m, p.cols, x_row_stride, x_col_stride), threads);
        },
        ReleaseGil());
    module.def(
        "grow_candidates_conv2d",
        [](int dtype, Address pattern, int64_t words, const sk::Conv2dShape& shape, Address grad_y,
           int64_t grad_y_count, Address x, int64_t x_count, int threads) {
            return sk::grow_candidates_conv2d(dtype_of(dtype), view(pattern, words), shape,
                                              input(grad_y, grad_y_count), input(x, x_count), threads);
        },
        ReleaseGil());
}
