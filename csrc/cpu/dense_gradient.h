// The dense gradient of a weight matrix, block by block: each is computed in scratch, visited and forgotten.
#pragma once

#include <algorithm>
#include <cstdint>

#include "buffer.h"
#include "kernel_table.h"
#include "team.h"

namespace sparsekern {

struct MatrixBlock {
    int64_t row;
    int64_t rows;
    int64_t column;
    int64_t columns;
};

// A matrix whose rows come in groups, cut into blocks that lie in one group each: whole panels of rows and
// columns, small enough for a private cache and for `wanted` blocks or more.
class BlockGrid {
public:
    BlockGrid(int64_t groups, int64_t group_rows, int64_t columns, int64_t row_unit, int64_t column_unit,
              int64_t wanted)
        : groups_(groups),
          group_rows_(group_rows),
          columns_(columns),
          block_rows_(std::min(kBlockRows, round_up(group_rows, row_unit))),
          block_columns_(std::min(round_up(kBlockColumns, column_unit), round_up(columns, column_unit))) {
        while (size() < wanted && (block_rows_ > row_unit || block_columns_ > column_unit)) {
            const bool cut_rows =
                block_columns_ == column_unit || (block_rows_ > row_unit && block_rows_ >= block_columns_);
            int64_t& extent = cut_rows ? block_rows_ : block_columns_;
            extent = round_up(extent / 2, cut_rows ? row_unit : column_unit);
        }
    }

    int64_t size() const { return groups_ * row_blocks() * column_blocks(); }
    int64_t block_rows() const { return block_rows_; }
    int64_t block_columns() const { return block_columns_; }

    MatrixBlock block(int64_t index) const {
        const int64_t column = index % column_blocks() * block_columns_;
        const int64_t in_group = index / column_blocks() % row_blocks() * block_rows_;
        const int64_t group = index / (column_blocks() * row_blocks());
        return {group * group_rows_ + in_group, std::min(block_rows_, group_rows_ - in_group), column,
                std::min(block_columns_, columns_ - column)};
    }

    static int64_t round_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

private:
    static constexpr int64_t kBlockRows = 192;
    static constexpr int64_t kBlockColumns = 384;

    int64_t row_blocks() const { return (group_rows_ + block_rows_ - 1) / block_rows_; }
    int64_t column_blocks() const { return (columns_ + block_columns_ - 1) / block_columns_; }

    int64_t groups_;
    int64_t group_rows_;
    int64_t columns_;
    int64_t block_rows_;
    int64_t block_columns_;
};

// Sums over samples of y[sample, row] * x[sample, column]. A `Source` says how many `samples()` there are,
// and packs panels: pack_rows(table, first sample, samples, row, rows, to) and pack_columns(..., column,
// columns, to) write outer_rows or outer_columns elements for each sample, zeros past the end.
template <class Source>
class DenseGradient {
    using A = typename Source::Sum;
    // Samples of a panel, which the nearest cache holds. Sums are added up in parts of so many samples, so
    // this decides their last bits; how the matrix is cut into blocks does not.
    static constexpr int64_t kPanelSamples = 128;

public:
    DenseGradient(const Source& source, const KernelTable<A>& table) : source_(source), table_(table) {}

    // Calls visit(local, block, sums, pitch) for every block, in any order, where `local` is what the thread
    // has from make(); then merge(local), one thread at a time.
    template <class Make, class Visit, class Merge>
    void run(const BlockGrid& grid, int threads, Make&& make, Visit&& visit, Merge&& merge) const {
        const int64_t pitch = grid.block_columns();
        Team team;
#pragma omp parallel num_threads(threads) if (grid.size() > 1)
        {
            auto scratch = team.scratch([&] { return Scratch(grid); });
            auto local = team.scratch(make);
            if (scratch && local) {
#pragma omp for schedule(static)
                for (int64_t i = 0; i < grid.size(); ++i) {
                    const MatrixBlock block = grid.block(i);
                    compute(block, *scratch, pitch);
                    visit(*local, block, scratch->sums.data(), pitch);
                }
#pragma omp critical(sparsekern_dense_gradient)
                merge(*local);
            }
        }
        team.rethrow();
    }

private:
    struct Scratch {
        Buffer<A> rows;
        Buffer<A> columns;
        Buffer<A> sums;

        explicit Scratch(const BlockGrid& grid)
            : rows(grid.block_rows() * kPanelSamples),
              columns(grid.block_columns() * kPanelSamples),
              sums(grid.block_rows() * grid.block_columns()) {}
    };

    void compute(const MatrixBlock& block, Scratch& scratch, int64_t pitch) const {
        if (source_.samples() == 0) {
            std::fill(scratch.sums.data(), scratch.sums.data() + block.rows * pitch, A(0));
        }
        for (int64_t first = 0; first < source_.samples(); first += kPanelSamples) {
            const int64_t samples = std::min(kPanelSamples, source_.samples() - first);
            for (int64_t r = 0; r < block.rows; r += table_.outer_rows) {
                source_.pack_rows(table_, first, samples, block.row + r,
                                  std::min(table_.outer_rows, block.rows - r),
                                  scratch.rows.data() + r * kPanelSamples);
            }
            for (int64_t c = 0; c < block.columns; c += table_.outer_columns) {
                A* const panel = scratch.columns.data() + c * kPanelSamples;
                source_.pack_columns(table_, block.row, first, samples, block.column + c,
                                     std::min(table_.outer_columns, block.columns - c), panel);
                for (int64_t r = 0; r < block.rows; r += table_.outer_rows) {
                    table_.outer({scratch.rows.data() + r * kPanelSamples, panel, samples,
                                  scratch.sums.data() + r * pitch + c, pitch},
                                 first == 0);
                }
            }
        }
    }

    const Source& source_;
    const KernelTable<A>& table_;
};

}  // namespace sparsekern
