#include "sparsekern/isa.h"

#include <atomic>
#include <stdexcept>

#include "kernel_table.h"

namespace sparsekern {

namespace portable {
KernelTable<float> float_table();
KernelTable<double> double_table();
}  // namespace portable
#if !defined(SPARSEKERN_NO_X86)
namespace avx2 {
KernelTable<float> float_table();
KernelTable<double> double_table();
}  // namespace avx2
namespace avx512 {
KernelTable<float> float_table();
KernelTable<double> double_table();
}  // namespace avx512
namespace avx512_vbmi2 {
void improve(KernelTable<float>& table);
void improve(KernelTable<double>& table);
}  // namespace avx512_vbmi2
#endif

namespace {

struct Level {
    Isa isa;
    KernelTable<float> (*float_table)();
    KernelTable<double> (*double_table)();
    bool (*runs_here)();
};

#if !defined(SPARSEKERN_NO_X86)
// Ice Lake and Zen 4 onwards add what some kernels gain from; older AVX-512 machines go without it.
template <class A>
KernelTable<A> with_vbmi2(KernelTable<A> table) {
    const bool newer = __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
    if (newer) avx512_vbmi2::improve(table);
    return table;
}
KernelTable<float> avx512_float_table() { return with_vbmi2(avx512::float_table()); }
KernelTable<double> avx512_double_table() { return with_vbmi2(avx512::double_table()); }
#endif

const Level kLevels[] = {
    {Isa::portable, portable::float_table, portable::double_table, [] { return true; }},
#if !defined(SPARSEKERN_NO_X86)
    {Isa::avx2, avx2::float_table, avx2::double_table,
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("bmi2");
     }},
    {Isa::avx512, avx512_float_table, avx512_double_table,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("bmi2");
     }},
#endif
};

const Level* find_level(Isa isa) {
    for (const Level& level : kLevels) {
        if (level.isa == isa && level.runs_here()) return &level;
    }
    return nullptr;
}

std::atomic<const Level*>& chosen() {
    static std::atomic<const Level*> level{find_level(isa_levels().back())};
    return level;
}

template <class A, class Make>
const KernelTable<A>& cached(Make make) {
    static const KernelTable<A> tables[] = {
        make(kLevels[0]),
#if !defined(SPARSEKERN_NO_X86)
        make(kLevels[1]),
        make(kLevels[2]),
#endif
    };
    return tables[static_cast<int>(chosen().load()->isa)];
}

}  // namespace

std::vector<Isa> isa_levels() {
    std::vector<Isa> levels;
    for (const Level& level : kLevels) {
        if (level.runs_here()) levels.push_back(level.isa);
    }
    return levels;
}

Isa current_isa() { return chosen().load()->isa; }

void set_isa(Isa isa) {
    const Level* level = find_level(isa);
    if (level == nullptr) {
        throw std::invalid_argument(std::string("isa: this machine cannot run '") + isa_name(isa) + "'");
    }
    chosen().store(level);
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::portable:
            return "portable";
        case Isa::avx2:
            return "avx2";
        case Isa::avx512:
            return "avx512";
    }
    return "unknown";
}

Isa isa_from_name(const std::string& name) {
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
        if (name == isa_name(isa)) return isa;
    }
    throw std::invalid_argument("isa: expected 'portable', 'avx2' or 'avx512', got '" + name + "'");
}

template <>
const KernelTable<float>& kernels<float>() {
    return cached<float>([](const Level& level) { return level.float_table(); });
}

template <>
const KernelTable<double>& kernels<double>() {
    return cached<double>([](const Level& level) { return level.double_table(); });
}

}  // namespace sparsekern
