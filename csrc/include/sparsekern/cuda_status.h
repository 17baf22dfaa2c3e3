// What every GPU launcher returns. Launchers never print and never throw.
#pragma once

#include <cstdint>

namespace sparsekern::cuda {

// Zero is success, a positive value is the CUDA runtime's own error code, a negative one names the argument
// that was refused. After a refusal nothing was launched and nothing was written.
enum class Status : int32_t {
    ok = 0,
    bad_element_size = -1,
    bad_pattern_sizes = -2,
    different_shapes = -3,
    different_tile_sizes = -4,
    null_pointer = -5,
    misaligned_pointer = -6,
    not_device_memory = -7,
    different_devices = -8,
    overlapping_buffers = -9,
    bad_type = -10,
    bad_count = -11,
    bad_order = -12,
    too_few_candidates = -13,
    bad_workspace = -14,
    bad_weight_type = -15,
    bad_weight_sizes = -16,
    bad_layout = -17,
    bad_transpose = -18,
};

// One sentence for a status, a static string.
const char* status_message(Status status);

}  // namespace sparsekern::cuda
