// Scratch memory aligned for the widest vector, uninitialized. Each thread keeps a few blocks for its next
// op: an op takes some at every call, and fresh pages cost more than the arithmetic of a small layer.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace sparsekern {

// Says how much was asked for; an allocation would be out of place here, so the text lies in the exception.
class OutOfMemory : public std::bad_alloc {
public:
    explicit OutOfMemory(size_t bytes) {
        std::snprintf(text_, sizeof(text_), "no memory for %zu bytes of scratch", bytes);
    }
    const char* what() const noexcept override { return text_; }

private:
    char text_[64];
};

class BlockCache {
public:
    ~BlockCache() {
        for (Block& block : blocks_) std::free(block.data);
    }
    static BlockCache& of_this_thread() {
        thread_local BlockCache cache;
        return cache;
    }

#if defined(__SANITIZE_ADDRESS__)
    // A block of its own for every buffer, which ends where the buffer does, filled with NaN of every type:
    // what reads or writes beyond it is caught, and what was never written shows in results.
    void* take(size_t bytes, size_t* capacity) {
        void* data = nullptr;
        if (posix_memalign(&data, 64, bytes) != 0) throw OutOfMemory(bytes);
        std::memset(data, 0xFF, bytes);
        *capacity = bytes;
        return data;
    }
    void give_back(void* data, size_t) { std::free(data); }
#else
    void* take(size_t bytes, size_t* capacity) {
        Block* best = nullptr;
        for (Block& block : blocks_) {
            const bool fits = block.data != nullptr && block.bytes >= bytes;
            if (fits && (best == nullptr || block.bytes < best->bytes)) best = &block;
        }
        if (best != nullptr) {
            void* const data = best->data;
            *capacity = best->bytes;
            *best = Block{};
            return data;
        }
        *capacity = (bytes + 63) / 64 * 64;
        void* const data = std::aligned_alloc(64, *capacity);
        if (data == nullptr) throw OutOfMemory(*capacity);
        return data;
    }

    // Keeps the block in place of the smallest one that is smaller, or frees it.
    void give_back(void* data, size_t bytes) {
        Block* place = nullptr;
        if (bytes <= kLargestKept) {
            for (Block& block : blocks_) {
                if (block.bytes < bytes && (place == nullptr || block.bytes < place->bytes)) place = &block;
            }
        }
        if (place == nullptr) return std::free(data);
        std::free(place->data);
        *place = Block{data, bytes};
    }
#endif

private:
    struct Block {
        void* data = nullptr;
        size_t bytes = 0;
    };
    static constexpr size_t kLargestKept = size_t{2} << 20;

    Block blocks_[4];
};

template <class T>
class Buffer {
public:
    explicit Buffer(int64_t count) {
        const size_t bytes = static_cast<size_t>(count > 0 ? count : 1) * sizeof(T);
        data_ = static_cast<T*>(BlockCache::of_this_thread().take(bytes, &capacity_));
    }
    ~Buffer() {
        if (data_ != nullptr) BlockCache::of_this_thread().give_back(data_, capacity_);
    }
    Buffer(Buffer&& other) noexcept : data_(other.data_), capacity_(other.capacity_) {
        other.data_ = nullptr;
    }
    Buffer& operator=(Buffer&&) = delete;

    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }

private:
    T* data_;
    size_t capacity_ = 0;
};

}  // namespace sparsekern
