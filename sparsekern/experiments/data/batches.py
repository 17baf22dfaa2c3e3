"""Which examples each training step sees, computed from the step alone."""

import torch

from sparsekern.experiments.errors import RecipeError
from sparsekern.seeds import generator


class BatchOrder:
    """An endless stream of epochs, each a fresh permutation of all examples, cut into batches of one size.

    ``indices(step)`` are the stream's positions ``step * batch_size`` to ``(step + 1) * batch_size - 1``;
    position ``p`` holds entry ``p % num_examples`` of the permutation of epoch ``p // num_examples``. So no
    batch is short: the one in which an epoch ends takes its last examples from the next epoch, as
    ``repeat().shuffle().batch()`` does in the paper's code (60,000 examples in batches of 128: 468.75 steps
    an epoch, 11,719 steps for 25 epochs).

    The permutation of an epoch depends on the seed and the epoch only, so a resumed run needs nothing but its
    step.

    Parameters
    ----------
    num_examples : int
        Examples in the training set, at least 1.
    batch_size : int
        Examples in a batch, from 1 to ``num_examples``.
    seed : int
        The run's data seed.

    Raises
    ------
    ValueError
        If ``num_examples`` or ``batch_size`` is out of range; of the latter it is a :class:`RecipeError`.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        if num_examples < 1:
            raise ValueError(f"num_examples must be at least 1, got {num_examples}")
        if not 1 <= batch_size <= num_examples:
            raise RecipeError(
                f"batch_size must be from 1 to the number of training examples, {num_examples:,}, "
                f"got {batch_size:,}"
            )
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> torch.Tensor:
        """The examples of training step ``step``, counted from 0.

        Returns
        -------
        torch.Tensor
            int64 (batch_size,), each from 0 to ``num_examples - 1``.
        """
        parts = []
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        while position < end:
            epoch, offset = divmod(position, self.num_examples)
            part = self._permutation_of(epoch)[offset : offset + end - position]
            parts.append(part)
            position += len(part)
        return torch.cat(parts)

    def epochs(self, step: int) -> float:
        """Epochs seen after ``step`` steps, a fraction included."""
        return step * self.batch_size / self.num_examples

    def _permutation_of(self, epoch: int) -> torch.Tensor:
        if epoch != self._epoch:
            self._permutation = torch.randperm(
                self.num_examples, generator=generator(self.seed, "data", epoch)
            )
            self._epoch = epoch
        return self._permutation
