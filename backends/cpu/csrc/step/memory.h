// Aligned memory from the system, zero when it is new.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rt {

// Null when there is none. Large pages, where the system has some, are for what is read over and over at random; they
// are whole as soon as one byte is written, and at times slow to get.
void* allocate_pages(size_t bytes, bool large = false);
void free_pages(void* data, size_t bytes);

// A piece of memory that only grows; its content is lost when it does.
class Memory {
public:
    Memory() = default;
    ~Memory() { free_pages(data_, bytes_); }
    Memory(Memory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr, other.bytes_ = 0; }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    void reserve(size_t bytes);  // throws std::bad_alloc
    uint8_t* data() const { return static_cast<uint8_t*>(data_); }
    size_t bytes() const { return bytes_; }
    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

// Takes pieces of a Memory one after the other, each on its own cache line. Without memory it only counts bytes.
class Carver {
public:
    explicit Carver(uint8_t* data = nullptr) : data_(data) {}
    template <class T>
    T* take(int64_t count) {
        T* piece = data_ ? reinterpret_cast<T*>(data_ + used_) : nullptr;
        used_ += ((size_t)count * sizeof(T) + 63) / 64 * 64;
        return piece;
    }
    size_t used() const { return used_; }

private:
    uint8_t* data_;
    size_t used_ = 0;
};

}  // namespace rt
