// Rows of bits read from a mask of bytes in the weight's own shape.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "check.h"
#include "sparsekern/pattern_build.h"

namespace sparsekern {
namespace {

// The eight bytes at `bytes` as eight bits, 1 where the byte is not zero.
uint64_t nonzero_bits(const unsigned char* bytes) {
    uint64_t word;
    std::memcpy(&word, bytes, sizeof(word));
    constexpr uint64_t kLow7 = 0x7F7F7F7F7F7F7F7Full;
    word = ((((word & kLow7) + kLow7) | word) >> 7) & 0x0101010101010101ull;
    return (word * 0x0102040810204080ull) >> 56;
}

class LinearMask final : public RowSource {
public:
    LinearMask(const unsigned char* mask, int64_t cols) : mask_(mask), cols_(cols) {}

    void read_row(int64_t row, uint64_t* words) const override {
        const unsigned char* bytes = mask_ + row * cols_;
        std::fill(words, words + (cols_ + 63) / 64, 0);
        int64_t k = 0;
        for (; k + 8 <= cols_; k += 8) words[k / 64] |= nonzero_bits(bytes + k) << (k % 64);
        for (; k < cols_; ++k) words[k / 64] |= static_cast<uint64_t>(bytes[k] != 0) << (k % 64);
    }

private:
    const unsigned char* mask_;
    int64_t cols_;
};

// Reads (cin, kernel positions) in memory order and sets the bits in (kernel position, cin) order.
class ConvMask final : public RowSource {
public:
    ConvMask(const unsigned char* mask, int64_t cin, int64_t positions)
        : mask_(mask), cin_(cin), positions_(positions) {}

    void read_row(int64_t row, uint64_t* words) const override {
        const int64_t cols = cin_ * positions_;
        const unsigned char* bytes = mask_ + row * cols;
        std::fill(words, words + (cols + 63) / 64, 0);
        for (int64_t c = 0; c < cin_; ++c) {
            for (int64_t position = 0; position < positions_; ++position) {
                const int64_t k = position * cin_ + c;
                words[k / 64] |= static_cast<uint64_t>(*bytes++ != 0) << (k % 64);
            }
        }
    }

private:
    const unsigned char* mask_;
    int64_t cin_;
    int64_t positions_;
};

}  // namespace

std::unique_ptr<RowSource> mask_source(const unsigned char* mask, int64_t elements,
                                       const WeightShape& shape) {
    check_weight_shape(shape);
    if (elements != shape.rows * shape.cols()) {
        throw std::invalid_argument("mask must hold " + std::to_string(shape.rows * shape.cols()) +
                                    " elements, got " + std::to_string(elements));
    }
    check_address("mask", mask, elements, 1);
    const int64_t positions = shape.kh * shape.kw;
    if (positions == 1) return std::make_unique<LinearMask>(mask, shape.cin);
    return std::make_unique<ConvMask>(mask, shape.cin, positions);
}

}  // namespace sparsekern
