// The extension module sparsekern._C. Tensors are handed over as addresses with element counts, so that the
// module depends on no version of torch.
#include "bindings.h"

PYBIND11_MODULE(_C, module) {
    module.doc() = "Native kernels of sparsekern";
    bind_pattern(module);
    bind_compute(module);
    bind_grow_candidates(module);
    bind_two_four(module);
    bind_two_four_linear(module);
    bind_cuda(module);
}
