import json
import pkgutil
import subprocess
import sys

import rewards


def test_rewards_load_no_framework_and_no_data_pipeline():
    """In a fresh process: a recipe must load at once, and a generator's bug must not hide in its checker."""
    modules = [f"rewards.{module.name}" for module in pkgutil.iter_modules(rewards.__path__)]
    assert {"rewards.maze", "rewards.trl", "rewards.outside"} <= set(modules)
    code = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert "rewards" in loaded
    assert not {"torch", "transformers", "data_pipelines"} & set(loaded)
