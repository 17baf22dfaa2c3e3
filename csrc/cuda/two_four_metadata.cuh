// The metadata of a block of a weight and of its transpose: collected in shared memory, and stored in one
// layout or the other.
#pragma once

#include <cstdint>

#include "sparsekern/pack_two_four_cuda.h"
#include "two_four_elements.cuh"

namespace sparsekern::cuda {

constexpr int kBlockRows = 128;
constexpr int kBlockColumns = 64;
constexpr int kThreads = 128;

struct alignas(16) BlockMetadata {
    uint8_t of_row[kBlockRows][kBlockColumns / 8];
    uint8_t of_column[kBlockColumns][kBlockRows / 8];
};

template <class Piece, int kRows, int kRowBytes>
__device__ inline void store_pieces(const uint8_t (&block)[kRows][kRowBytes], void* metadata, int64_t rows,
                                    int64_t row_bytes, int64_t first_row, int64_t first_byte) {
    constexpr int kSize = sizeof(Piece), kAcross = kRowBytes / kSize;
#pragma unroll
    for (int first = 0; first < kRows * kAcross; first += kThreads) {
        const int i = first + static_cast<int>(threadIdx.x);
        const int64_t row = first_row + i / kAcross, byte = first_byte + i % kAcross * kSize;
        if (i >= kRows * kAcross || row >= rows || byte >= row_bytes) continue;
        *reinterpret_cast<Piece*>(static_cast<uint8_t*>(metadata) + row * row_bytes + byte) =
            *reinterpret_cast<const Piece*>(&block[i / kAcross][i % kAcross * kSize]);
    }
}

// Row by row: eight bytes at a time where all rows are so long that these are aligned.
template <int kRows, int kRowBytes>
__device__ inline void store_bytes(const uint8_t (&block)[kRows][kRowBytes], void* metadata, int64_t rows,
                                   int64_t row_bytes, int64_t first_row, int64_t first_byte) {
    if (row_bytes % 8 == 0) {
        store_pieces<uint64_t>(block, metadata, rows, row_bytes, first_row, first_byte);
    } else {
        store_pieces<uint8_t>(block, metadata, rows, row_bytes, first_row, first_byte);
    }
}

__device__ inline void store_rows(const BlockMetadata& shared, const TwoFourWeight& weight, int64_t first_row,
                                  int64_t first_column) {
    store_bytes(shared.of_row, weight.metadata, weight.rows, metadata_bytes(weight.columns), first_row,
                first_column / 8);
    if (weight.values_t == nullptr) return;
    store_bytes(shared.of_column, weight.metadata_t, weight.columns, metadata_bytes(weight.rows),
                first_column, first_row / 8);
}

// As matrix instructions read it. A block of 32 rows (int8: 16) and 4 bytes of metadata (int8: 8) is
// contiguous, and blocks below each other follow one another. Within a block come 16 bytes each for rows 0,
// 8, 16 and 24 (int8: 0 and 8), for rows 1, 9, 17 and 25, and so on: half words (int8: words) of two rows in
// turns.
template <int kBytes, int kRows, int kRowBytes>
__device__ inline void store_interleaved_bytes(const uint8_t (&block)[kRows][kRowBytes], void* metadata,
                                               int64_t rows, int64_t row_bytes, int64_t first_row,
                                               int64_t first_byte) {
    constexpr int kPieceRows = kBytes == 1 ? 16 : 32, kPieceBytes = kBytes == 1 ? 8 : 4;
    constexpr int kPiecesBelow = kRows / kPieceRows;
    constexpr int kSlices = kPiecesBelow * (kRowBytes / kPieceBytes) * 8;
    static_assert(kSlices <= kThreads);
    const int i = static_cast<int>(threadIdx.x);
    const int slice = i % 8, piece_row = i / 8 % kPiecesBelow * kPieceRows;
    const int byte = i / 8 / kPiecesBelow * kPieceBytes;
    if (i >= kSlices || first_row + piece_row >= rows || first_byte + byte >= row_bytes) return;
    const auto word = [&](int row, int offset) {
        return *reinterpret_cast<const uint32_t*>(&block[piece_row + slice + row][byte + offset]);
    };
    Words<4> words;
    if constexpr (kBytes == 1) {
        words = {{word(0, 0), word(8, 0), word(0, 4), word(8, 4)}};
    } else {
        const uint32_t a = word(0, 0), b = word(8, 0), c = word(16, 0), d = word(24, 0);
        words = {{__byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632), __byte_perm(c, d, 0x5410),
                  __byte_perm(c, d, 0x7632)}};
    }
    const int64_t piece = ((first_byte + byte) / kPieceBytes * rows + first_row + piece_row) * kPieceBytes;
    *reinterpret_cast<Words<4>*>(static_cast<char*>(metadata) + piece + 16 * slice) = words;
}

template <int kBytes>
__device__ inline void store_interleaved(const BlockMetadata& shared, const TwoFourWeight& weight,
                                         int64_t first_row, int64_t first_column) {
    store_interleaved_bytes<kBytes>(shared.of_row, weight.metadata, weight.rows, weight.columns / 8,
                                    first_row, first_column / 8);
    if (weight.values_t == nullptr) return;
    store_interleaved_bytes<kBytes>(shared.of_column, weight.metadata_t, weight.columns, weight.rows / 8,
                                    first_column, first_row / 8);
}

}  // namespace sparsekern::cuda
