// Scratch memory aligned for the widest vector, uninitialized.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace sparsekern {

template <class T>
class Buffer {
   public:
    explicit Buffer(int64_t count) {
        const size_t bytes = (static_cast<size_t>(count > 0 ? count : 1) * sizeof(T) + 63) / 64 * 64;
        data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
        if (data_ == nullptr) throw std::bad_alloc();
    }
    ~Buffer() { std::free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }

   private:
    T* data_;
};

}  // namespace sparsekern
