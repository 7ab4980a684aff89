"""Model families: the import path of each one's config class, which checks its keys and builds it. Imports no torch."""

FAMILIES = {
    "nanogpt": "spectral_mup.models.configs.NanoGPTConfig",
    "llama2": "spectral_mup.models.configs.Llama2Config",
    "huggingface": "spectral_mup.models.configs.HuggingFaceConfig",
    "factory": "spectral_mup.models.configs.FactoryConfig",
}
