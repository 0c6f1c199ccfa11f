"""Several adapters on one base."""

from __future__ import annotations

from typing import Any

from artifacts.kinds import Adapter
from tasks.training.models import check_base, require_matrices_only


def with_adapters(model: Any, adapter: Adapter, *names: str) -> Any:
    """`model` with copies of `adapter` under `names`."""
    from peft import PeftModel

    check_base(adapter)
    require_matrices_only(adapter)
    for name in names:
        if isinstance(model, PeftModel):
            model.load_adapter(adapter.path, adapter_name=name, torch_device=str(model.device))
        else:
            model = PeftModel.from_pretrained(model, adapter.path, adapter_name=name)
    return model


def copy_adapter(model: Any, source: str, name: str) -> None:
    """A copy of the adapter `source`, in the same model, under another name."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    model.add_adapter(name, model.peft_config[source])
    tensors = get_peft_model_state_dict(model, adapter_name=source)
    set_peft_model_state_dict(model, tensors, adapter_name=name)


def tuner_layers(model: Any) -> list[Any]:
    """The modules in which adapters sit."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
