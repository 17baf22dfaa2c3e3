// Scratch for the threads of a team. An exception must not leave an OpenMP region, and a thread that misses a
// work-sharing loop would leave the others waiting at its end.
#pragma once

#include <exception>
#include <optional>

namespace sparsekern {

// What the threads of one region have in common: the first failure of any of them.
class Team {
public:
    // Called by every thread of the region. Returns scratch made by `make`, or nothing on all threads when it
    // threw on any.
    template <class Make>
    auto scratch(Make&& make) -> std::optional<decltype(make())> {
        std::optional<decltype(make())> made;
        try {
            made.emplace(make());
        } catch (...) {
#pragma omp critical(sparsekern_team)
            if (!failure_) failure_ = std::current_exception();
        }
#pragma omp barrier
        if (failure_) made.reset();
        return made;
    }

    // Called behind the region: throws what a thread has thrown.
    void rethrow() const {
        if (failure_) std::rethrow_exception(failure_);
    }

private:
    std::exception_ptr failure_;
};

}  // namespace sparsekern
