// Which instruction set the CPU kernels use: the best one that the machine has, unless a lower one is asked
// for.
#pragma once

#include <string>
#include <vector>

namespace sparsekern {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2 };

// The levels that were built and that this machine can run, lowest first.
std::vector<Isa> isa_levels();

Isa current_isa();

// Throws std::invalid_argument when this machine cannot run the level.
void set_isa(Isa level);

const char* isa_name(Isa level);

// Throws std::invalid_argument for a name that no level has.
Isa isa_from_name(const std::string& name);

}  // namespace sparsekern
