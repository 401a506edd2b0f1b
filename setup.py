"""Ecliptica: instruction-driven alignment. The packages are ecliptica, kernels and model.

train.py and eval.py run from the checkout.
"""

from setuptools import find_packages, setup

PEERS = ["transformers", "peft", "trl", "accelerate", "datasets"]

setup(
    name="ecliptica-cita",
    version="0.1.0",
    description="CITA: contrastive instruction-tuned alignment, with an exact KL",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ecliptica*", "kernels*", "model*"]),
    package_data={
        "ecliptica.isd": ["*.toml", "bank/*.jsonl", "sets/*"],
        "ecliptica": ["recipes/*.toml", "recipes/ablations/*.toml"],
    },
    install_requires=[
        "torch>=2.10",  # products of half precision that accumulate into float32 (mm.dtype_out)
        "triton>=3.6; platform_system == 'Linux'",  # what that torch is built against
        "safetensors",
        "tokenizers",
        "sentencepiece",
        "numpy",
        "tqdm",
    ],
    extras_require={
        "demo": ["gguf", "matplotlib"],
        "ecliptica-30k": ["pyarrow", "pyyaml"],
        "test": [
            "pytest",
            "pytest-xdist",
            "filelock",
            "gguf",
            "matplotlib",
            "pyarrow",
            "pyyaml",
            "ruff",
        ],
        "peer": PEERS,
        "cluster": ["submitit"],
    },
)
