"""The laws the science rests on, for every optimizer in conf/optimizer, each beside a wrong law or rule that must fail."""

import pytest
from support.optimizer_laws import OPTIMIZERS, TOLERANCE, declared, found
from support.optimizers import law_name

from spectral_mup.theory.size_laws import SIZE_LAWS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_direction_grows_as_its_declared_law_and_as_no_other(optimizer):
    """Measured blind, widths 32 to 256, two seeds, steps 8 to 12: every kind of tensor within ±0.15 of the law in the YAML.

    Every other named law is rejected, unless it says the same of all tensors that the algorithm has.
    """
    sizes = declared(optimizer)
    for algorithm, law in found(optimizer).items():
        name = law_name(sizes[algorithm] or {})
        assert name == law.law, (algorithm, law)
        assert not law.also and not law.too_few, law
        for c in (c for c in law.classes if c.judged):
            assert abs(c.slope - c.laws[name]) <= TOLERANCE, (algorithm, c)
        for other in set(SIZE_LAWS) - {name}:
            apart = [c for c in law.classes if c.judged and abs(c.laws[other] - c.laws[name]) > 0.2]
            assert other in law.rejected or not apart, (algorithm, other)
