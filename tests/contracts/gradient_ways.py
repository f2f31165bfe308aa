"""Ways in which autograd lets a user change gradients: what each does to a model, and until when.

Each is a generator function: it changes the model, yields while updates are made, and puts back what was global.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch as th
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode


def layers_of(network):
    """All linear layers, in their order."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def inner_pair(network):
    """Two linear layers of the same shape."""
    found = layers_of(network)
    return next((a, b) for i, a in enumerate(found) for b in found[i + 1 :] if a.weight.shape == b.weight.shape)


def negated(gradient):
    return -gradient


def frozen_actor(model):
    model.actor.requires_grad_(False)
    yield


def frozen_layers(model):
    layers_of(model.actor)[0].weight.requires_grad_(False)
    biases = [layer.bias for layer in layers_of(model.critic.qf1) if layer.bias is not None]
    biases[min(1, len(biases) - 1)].requires_grad_(False)
    yield


def frozen_critic(model):
    model.critic.requires_grad_(False)
    yield


def frozen_temperature(model):
    model.log_ent_coef.requires_grad_(False)
    yield


def hooks_on_critic_tensors(model):
    for parameter in model.critic.parameters():
        parameter.register_hook(th.zeros_like)
    yield


def hooks_on_actor_tensors(model):
    for parameter in model.actor.parameters():
        parameter.register_hook(negated)
    yield


def hook_on_temperature(model):
    model.log_ent_coef.register_hook(negated)
    yield


def hooks_after_accumulation(model):
    for parameter in [*model.actor.parameters(), *model.critic.parameters(), model.log_ent_coef]:
        parameter.register_post_accumulate_grad_hook(_negate_gradient)
    yield


def _negate_gradient(parameter, *_):
    parameter.grad.neg_()


def _nodes(parameters):
    return [parameter.view_as(parameter).grad_fn.next_functions[0][0] for parameter in parameters]


def hooks_before_accumulating_nodes(model):
    nodes = _nodes([*model.actor.parameters(), *model.critic.parameters()])
    handles = [node.register_prehook(lambda gradients: tuple(-part for part in gradients)) for node in nodes]
    yield
    assert len(handles) == len(nodes)  # a node lives as long as somebody has it


def hooks_after_accumulating_nodes(model):
    parameters = [*model.actor.parameters(), *model.critic.parameters()]
    nodes = _nodes(parameters)
    for node, parameter in zip(nodes, parameters, strict=True):
        node.register_hook(partial(_negate_gradient, parameter))
    yield
    del nodes


def hook_on_several_gradients(model):
    parameters, seen = list(model.critic.qf0.parameters()), []
    model.seen = seen

    def first_again(gradients):
        seen.append(gradients)
        with th.no_grad():
            parameters[0].mul_(0.9)

    handle = th.autograd.graph.register_multi_grad_hook(parameters, first_again)
    yield
    assert seen
    handle.remove()
    del model.seen


def _negated_parts(parts):
    return tuple(None if part is None else -part for part in parts)


def backward_hook_of_module(model):
    model.critic.qf0[0].register_full_backward_hook(lambda module, inputs, outputs: _negated_parts(inputs))
    layers_of(model.actor.latent_pi)[1].register_full_backward_hook(lambda module, inputs, outputs: _negated_parts(inputs))
    yield


def backward_pre_hook_of_module(model):
    layers_of(model.critic.qf0)[1].register_full_backward_pre_hook(lambda module, outputs: _negated_parts(outputs))
    model.actor.mu.register_full_backward_pre_hook(lambda module, outputs: _negated_parts(outputs))
    yield


def forward_hook(model):
    layers_of(model.critic.qf1)[1].register_forward_hook(lambda module, inputs, output: 0.5 * output)
    layers_of(model.actor.latent_pi)[0].register_forward_hook(lambda module, inputs, output: output.detach())
    yield


def forward_pre_hook(model):
    model.actor.log_std.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(),))
    layers_of(model.critic.qf0)[-1].register_forward_pre_hook(lambda module, inputs: (2.0 * inputs[0],))
    yield


def _halved(outputs):
    return tuple(0.5 * part for part in outputs) if isinstance(outputs, tuple) else 0.5 * outputs


def hook_of_critic(model):
    model.critic.register_forward_hook(lambda module, inputs, outputs: _halved(outputs))
    yield


def hook_of_features(model):
    for network in (model.actor, model.critic):
        network.features_extractor.register_forward_hook(lambda module, inputs, output: 0.5 * output)
    yield


def hook_of_all_modules(model):
    def halved(module, inputs, output):
        return 0.5 * output if isinstance(module, nn.Linear) else None

    handle = torch_module.register_module_forward_hook(halved)
    yield
    handle.remove()


def backward_hook_of_all_modules(model):
    def negate(module, inputs, outputs):
        return _negated_parts(inputs) if isinstance(module, nn.Linear) else None

    handle = torch_module.register_module_full_backward_hook(negate)
    yield
    handle.remove()


def _in_both(model, change):
    change(model.critic)
    change(model.critic_target)


def shared_by_critics(model):
    def share(critic):
        layers_of(critic.qf1)[1].weight = layers_of(critic.qf0)[1].weight

    _in_both(model, share)
    yield


def shared_in_critic(model):
    def share(critic):
        first, second = inner_pair(critic.qf0)
        second.weight = first.weight

    _in_both(model, share)
    yield


def shared_in_actor(model):
    first, second = inner_pair(model.actor.latent_pi)
    second.weight = first.weight
    yield


def shared_by_actor_and_critic(model):
    layers_of(model.actor.latent_pi)[1].weight = layers_of(model.critic.qf0)[1].weight
    yield


def layer_twice(model):
    def repeat(critic):
        layers = critic.qf0._modules
        places = [name for name, layer in layers.items() if name != "0" and sum(1 for _ in layer.parameters())]
        place = next(name for name in places if getattr(layers[name], "in_features", 12) == 12)
        copy = nn.Sequential(*[layers[place]] * 2)
        layers[place] = copy

    _in_both(model, repeat)
    yield


def replaced_forward(model):
    for layer in (layers_of(model.actor.latent_pi)[1], layers_of(model.critic.qf0)[1]):
        layer.forward = lambda x, layer=layer: F.linear(x, layer.weight.detach(), layer.bias)
    yield


def replaced_forward_of_block(model):
    model.critic.qf0.forward = lambda x, network=model.critic.qf0: 0.5 * nn.Sequential.forward(network, x)
    yield


def replaced_forward_of_class(model):
    original = nn.Linear.forward
    nn.Linear.forward = lambda layer, x: F.linear(x, 0.5 * layer.weight, layer.bias)
    yield
    nn.Linear.forward = original


def replaced_forward_of_critic(model):
    critic = model.critic
    critic.forward = lambda obs, actions: _halved(type(critic).forward(critic, obs, actions))
    yield


def replaced_features_of_critic(model):
    critic = model.critic
    critic.extract_features = lambda obs, extractor: 0.5 * type(critic).extract_features(critic, obs, extractor)
    yield


def replaced_parameters_of_actor(model):
    actor = model.actor

    def narrower(obs):
        mean, log_std, kwargs = type(actor).get_action_dist_params(actor, obs)
        return mean.detach(), 0.5 * log_std, kwargs

    actor.get_action_dist_params = narrower
    yield


def replaced_density(model):
    distribution = model.actor.action_dist
    log_prob = distribution.log_prob
    distribution.log_prob = lambda *args: 0.5 * log_prob(*args)
    yield


def temperature_without_dimensions(model):
    model.log_ent_coef = th.tensor(0.3, requires_grad=True)
    model.ent_coef_optimizer = th.optim.Adam([model.log_ent_coef], lr=3e-4)
    yield


class ReversedLinear(nn.Linear):
    """Another class with the same parameters."""

    def forward(self, x):
        y = super().forward(x)
        return 2.0 * y.detach() - y


def other_class(model):
    for layer in (layers_of(model.actor.latent_pi)[1], layers_of(model.critic.qf0)[1]):
        layer.__class__ = ReversedLinear
    yield


class _Reversal(th.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class ReversedGradient(nn.Module):
    """The gradient reversal layer of domain adaptation."""

    def forward(self, x):
        return _Reversal.apply(x)


def unknown_layer(model):
    model.actor.latent_pi.append(ReversedGradient())
    yield


def normalised_weights(model):
    def normalise(critic):
        parametrizations.weight_norm(layers_of(critic.qf0)[1])

    _in_both(model, normalise)
    model.critic.optimizer.add_param_group(
        dict(params=[part for name, part in model.critic.qf0.named_parameters() if "original" in name])
    )
    yield


def pruned_weights(model):
    for network in (model.critic.qf1, model.critic_target.qf1, model.actor.latent_pi):
        prune.l1_unstructured(layers_of(network)[1], "weight", amount=0.5)
    yield


def weight_that_is_no_parameter(model):
    layer = layers_of(model.actor.latent_pi)[1]
    weight = layer.weight.detach().clone()
    del layer.weight
    layer.weight = 0.5 * weight
    yield


def other_parameter(model):
    layer = layers_of(model.actor.latent_pi)[1]
    layer.weight = nn.Parameter(0.5 * layer.weight.detach())
    yield


def gradients_that_add_up(model):
    model.critic.optimizer.zero_grad = lambda set_to_none=True: None
    model.actor.optimizer.zero_grad = lambda set_to_none=True: None
    model.ent_coef_optimizer.zero_grad = lambda set_to_none=True: None
    yield


def another_parameter_in_the_optimizer(model):
    model.extra = nn.Parameter(th.ones(3))
    model.extra.grad = th.ones(3)
    model.actor.optimizer.add_param_group(dict(params=[model.extra], weight_decay=0.1))
    layers_of(model.actor.latent_pi)[0].weight.grad = th.full_like(layers_of(model.actor.latent_pi)[0].weight, 100.0)
    layers_of(model.actor.latent_pi)[1].requires_grad_(False)
    yield
    assert th.equal(model.extra.detach(), th.ones(3)), "its gradient is not this loss's"


def optimizer_without_a_layer(model):
    left_out = {id(parameter) for parameter in layers_of(model.critic.qf0)[1].parameters()}
    for group in model.critic.optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in left_out]
    yield


def hook_before_steps(model):
    def without_first(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            group["params"][0].grad = th.zeros_like(group["params"][0])

    model.critic.optimizer.register_step_pre_hook(without_first)
    yield


def other_optimizer(model):
    model.actor.optimizer = th.optim.SGD(model.actor.parameters(), lr=3e-4, momentum=0.5)
    yield


def packed_tensors(model):
    def halved(tensor):
        return 0.5 * tensor if tensor.is_floating_point() else tensor

    with th.autograd.graph.saved_tensors_hooks(halved, lambda tensor: tensor):
        yield


class HalvedTanh(TorchFunctionMode):
    """Somebody else's functions."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return 0.5 * result if func in (th.tanh, F.relu, F.silu) else result


def function_mode(model):
    with HalvedTanh():
        yield


def switched_off(model):
    th.set_grad_enabled(False)
    yield
    th.set_grad_enabled(True)


def no_grad(model):
    with th.no_grad():
        yield


def inference_mode(model):
    with th.inference_mode():
        yield


WAYS = {
    way.__name__: way
    for way in (
        frozen_actor,
        frozen_layers,
        hooks_on_critic_tensors,
        hooks_on_actor_tensors,
        hook_on_temperature,
        hooks_after_accumulation,
        hooks_before_accumulating_nodes,
        hooks_after_accumulating_nodes,
        hook_on_several_gradients,
        backward_hook_of_module,
        backward_pre_hook_of_module,
        forward_hook,
        forward_pre_hook,
        hook_of_critic,
        hook_of_features,
        hook_of_all_modules,
        backward_hook_of_all_modules,
        shared_by_critics,
        shared_in_critic,
        shared_in_actor,
        layer_twice,
        replaced_forward,
        replaced_forward_of_block,
        replaced_forward_of_class,
        replaced_forward_of_critic,
        replaced_features_of_critic,
        replaced_parameters_of_actor,
        replaced_density,
        temperature_without_dimensions,
        other_class,
        unknown_layer,
        normalised_weights,
        pruned_weights,
        weight_that_is_no_parameter,
        other_parameter,
        gradients_that_add_up,
        another_parameter_in_the_optimizer,
        optimizer_without_a_layer,
        hook_before_steps,
        other_optimizer,
        packed_tensors,
        function_mode,
    )
}
"""Those that change what is learned."""

ERRORS = {
    way.__name__: way
    for way in (frozen_critic, frozen_temperature, shared_by_actor_and_critic, switched_off, no_grad, inference_mode)
}
"""Those under which SB3's SAC raises RuntimeError: nothing can be learned, or the critic's step changes the actor's graph."""


@contextmanager
def applied(way, model) -> Iterator[None]:
    """Within this context the model is changed; what is global is put back even if it raises."""
    generator = way(model)
    next(generator)
    try:
        yield
    finally:
        for _ in generator:
            raise AssertionError("a way yields once")
