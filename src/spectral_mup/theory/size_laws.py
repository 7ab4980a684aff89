"""The size laws that have a name."""

from spectral_mup.theory.rules import Exponents

# Growth of ‖direction‖₂ as exponents (see rules.UpdateScaling), and whose it is.
SIZE_LAWS: dict[str, Exponents] = {
    "entries of order 1 (Adam, ADOPT, Sophia, Lion)": {"m_out": 0.5, "m_in": 0.5},
    "norm of the weight (LAMB)": {"s": 1.0, "m_out": 0.5, "m_in": 0.5},
    "orthogonal (Muon, Shampoo)": {},
    "orthogonal × √(fan_out/fan_in)": {"m_out": 0.5, "m_in": -0.5},
    "orthogonal × √max(fan_out, fan_in)": {"m_max": 0.5},
    "orthogonal × √max(1, fan_out/fan_in)": {"m_aspect": 0.5},
    "raw gradient (SGD)": {"c": 1.0, "a": 1.0, "m_in": 0.5, "m_out": -0.5},
}
