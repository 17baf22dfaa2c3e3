// Values in the type that kernels compute in: themselves, or a float copy of bfloat16.
#pragma once

#include <cstdint>
#include <type_traits>

#include "buffer.h"
#include "kernel_table.h"
#include "sparsekern/dtype.h"

namespace sparsekern {

template <class T>
class ComputeValues {
    using A = AccumulateType<T>;
    static constexpr bool kCopies = !std::is_same<T, A>::value;

public:
    // `from` may be null, and then so is data().
    ComputeValues(const void* from, int64_t count) : copy_(kCopies ? count : 0) {
        const T* source = static_cast<const T*>(from);
        if (!kCopies || source == nullptr) {
            data_ = static_cast<const A*>(from);
        } else {
            pack(kernels<A>(), Samples<const T>{source, 1, count, count, 1}, copy_.data(), count);
            data_ = copy_.data();
        }
    }
    const A* data() const { return data_; }

private:
    Buffer<A> copy_;
    const A* data_ = nullptr;
};

// Room to compute values in; finish() rounds them into place where the stored type is another.
template <class T>
class ComputeOutput {
    using A = AccumulateType<T>;
    static constexpr bool kCopies = !std::is_same<T, A>::value;

public:
    ComputeOutput(void* to, int64_t count)
        : to_(static_cast<T*>(to)), count_(count), copy_(kCopies ? count : 0) {}
    A* data() { return kCopies ? copy_.data() : reinterpret_cast<A*>(to_); }
    void finish() {
        if (!kCopies) return;
        unpack(kernels<A>(), copy_.data(), count_, Samples<T>{to_, 1, count_, count_, 1});
    }

private:
    T* to_;
    int64_t count_;
    Buffer<A> copy_;
};

}  // namespace sparsekern
