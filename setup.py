"""Maps the top-level folders to subpackages of ``deploykit`` (see pyproject.toml for the rest).

``training/`` is installed as ``deploykit.training`` and so on, so that an install never puts a
package with a name as common as ``training`` into site-packages.
"""

from setuptools import find_packages, setup

FOLDERS = ("training", "exporters", "runtimes", "plugins_trt")


def packages() -> list[str]:
    names = ["deploykit"] + [f"deploykit.{name}" for name in find_packages("deploykit")]
    for folder in FOLDERS:
        names.append(f"deploykit.{folder}")
        names += [f"deploykit.{folder}.{name}" for name in find_packages(folder)]
    return names


setup(
    packages=packages(),
    package_dir={"deploykit": "deploykit"} | {f"deploykit.{folder}": folder for folder in FOLDERS},
    package_data={
        "": ["py.typed", "*.json", "*.md", "*.html"],
        "deploykit.training": ["recipes/**/*.py"],
        "deploykit.plugins_trt": ["kernels/*"],
    },
)
