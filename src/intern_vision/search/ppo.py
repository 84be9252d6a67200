"""The paper's controller: a recurrent policy trained with PPO (arXiv 1707.06347), as UniNet's search used.

An LSTM decides one thing after the other and sees the decision before (arXiv 1611.01578).

N candidates, T decisions, K options, W width of the LSTM.
"""

from collections import deque
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_vision.search.controllers import Outcome
from intern_vision.search.space import Choices, Space

HIDDEN_WIDTH = 64
BATCH_SIZE = 8
"""Candidates an update learns from."""
NUM_EPOCHS = 8
"""Passes over them."""
LEARNING_RATE = 1e-2
CLIP = 0.2
"""How far the probability ratio may move, as in the PPO paper."""
ENTROPY_WEIGHT = 0.01
MAX_ADVANTAGE, MAX_DISADVANTAGE = 3.0, 0.25
"""Bounds of what one candidate teaches, in deviations of the reward."""
BASELINE_DECAY = 0.8
"""Of the exponential average of past batches' mean reward, which is the baseline."""


class Policy(nn.Module):
    """An autoregressive distribution over lists of choices.

    Args:
        num_options: options of each decision.
    """

    def __init__(self, num_options: tuple[int, ...]) -> None:
        """Builds the LSTM, an embedding of all options and one linear layer a decision; it starts near uniform."""
        super().__init__()
        self.offsets = [sum(num_options[:index]) for index in range(len(num_options))]
        # The last row says that nothing has been decided yet.
        self.embedding = nn.Embedding(sum(num_options) + 1, HIDDEN_WIDTH)
        self.cell = nn.LSTMCell(HIDDEN_WIDTH, HIDDEN_WIDTH)
        self.heads = nn.ModuleList(nn.Linear(HIDDEN_WIDTH, number) for number in num_options)
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)

    def forward(self, choices_NT: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Scores lists of choices, or draws them.

        Args:
            choices_NT: int64 choices to score; its values are ignored where ``generator`` is given.
            generator: draws the choices.

        Returns:
            ``choices_NT``, their log-probability ``(N,)`` and the entropy ``(N,)``, summed over decisions.
        """
        num = len(choices_NT)
        state = (choices_NT.new_zeros((num, HIDDEN_WIDTH), dtype=torch.float32),) * 2
        token_N = torch.full((num,), self.embedding.num_embeddings - 1)
        picked, log_probability_N, entropy_N = [], torch.zeros(num), torch.zeros(num)
        for step, (head, offset) in enumerate(zip(self.heads, self.offsets, strict=True)):
            state = self.cell(self.embedding(token_N), state)
            logs_NK = F.log_softmax(head(state[0]), dim=1)
            if generator is None:
                choice_N = choices_NT[:, step]
            else:
                choice_N = torch.multinomial(logs_NK.exp(), 1, generator=generator)[:, 0]
            picked.append(choice_N)
            log_probability_N = log_probability_N + logs_NK.gather(1, choice_N[:, None])[:, 0]
            entropy_N = entropy_N - (logs_NK.exp() * logs_NK).sum(1)
            token_N = choice_N + offset
        return torch.stack(picked, 1), log_probability_N, entropy_N


class PolicyController:
    """Asks the policy and updates it after every ``BATCH_SIZE`` outcomes, too dear candidates included.

    Args:
        space: what to decide.
        seed: of the weights and the draws.
    """

    def __init__(self, space: Space, seed: int) -> None:
        """Builds a fresh policy without touching torch's own generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = Policy(tuple(len(decision.options) for decision in space.decisions))
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=LEARNING_RATE)
        self._blank_NT = torch.zeros((BATCH_SIZE, len(space.decisions)), dtype=torch.long)
        self._drawn: deque[tuple[Choices, Tensor]] = deque()
        self._told: list[tuple[Choices, Tensor, Outcome]] = []
        self._asked: dict[Choices, Tensor] = {}
        self._baseline: float | None = None

    @torch.no_grad()
    def ask(self) -> Choices:
        """See ``Controller``; candidates are drawn a batch at a time."""
        if not self._drawn:
            choices_NT, log_probability_N, _ = self.policy(self._blank_NT, self._generator)
            drawn = [tuple(choices) for choices in choices_NT.tolist()]
            self._drawn.extend(zip(drawn, log_probability_N, strict=True))
        choices, log_probability = self._drawn.popleft()
        self._asked[choices] = log_probability
        return choices

    def tell(self, choices: Choices, outcome: Outcome) -> None:
        """See ``Controller``; a candidate that was not asked for counts as drawn from today's policy."""
        log_probability = self._asked.pop(choices, None)
        if log_probability is None:
            with torch.no_grad():
                log_probability = self.policy(torch.tensor([choices]))[1][0]
        self._told.append((choices, log_probability, outcome))
        if len(self._told) == BATCH_SIZE:
            self._update()
            self._told.clear()
            self._drawn.clear()  # they are the old policy's

    def _update(self) -> None:
        choices_NT = torch.tensor([choices for choices, _, _ in self._told])
        old_N = torch.stack([log_probability for _, log_probability, _ in self._told])
        advantage_N = self._advantage([outcome for _, _, outcome in self._told])
        for _ in range(NUM_EPOCHS):
            _, new_N, entropy_N = self.policy(choices_NT)
            loss = clipped_surrogate(new_N, old_N, advantage_N) - ENTROPY_WEIGHT * entropy_N.mean()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()

    def _advantage(self, outcomes: Sequence[Outcome]) -> Tensor:
        """Rewards above the baseline in deviations of the new candidates within the cap.

        Far more candidates lie beyond the cap than within it, and their penalties are large: unbounded, they teach
        nothing but cheapness. A candidate that was told before counts as a bad one whatever its reward: rewarded
        again, it would be proposed ever more often, until the policy proposed nothing else.
        """
        reward_N = torch.tensor([outcome.reward for outcome in outcomes])
        is_news_N = torch.tensor([outcome.fits and not outcome.is_known for outcome in outcomes])
        news_N = reward_N[is_news_N]
        if len(news_N) < 2:
            return torch.where(is_news_N, 1.0, -MAX_DISADVANTAGE)
        mean = float(news_N.mean())
        baseline = mean if self._baseline is None else self._baseline
        self._baseline = BASELINE_DECAY * baseline + (1 - BASELINE_DECAY) * mean
        advantage_N = ((reward_N - baseline) / (news_N.std() + 1e-6)).clamp(-MAX_DISADVANTAGE, MAX_ADVANTAGE)
        known_N = torch.tensor([outcome.is_known for outcome in outcomes])
        return advantage_N.masked_fill(known_N, -MAX_DISADVANTAGE)


def clipped_surrogate(new_N: Tensor, old_N: Tensor, advantage_N: Tensor) -> Tensor:
    """PPO's loss (arXiv 1707.06347, equation 7), a scalar to be minimised.

    Args:
        new_N: log-probabilities under the policy that is trained.
        old_N: log-probabilities under the policy that drew the candidates.
        advantage_N: reward above the baseline.
    """
    ratio_N = (new_N - old_N).exp()
    clipped_N = ratio_N.clamp(1 - CLIP, 1 + CLIP)
    return -torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N).mean()
