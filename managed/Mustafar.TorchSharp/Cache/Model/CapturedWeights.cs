using System.Runtime.CompilerServices;
using Mustafar.Native;
using TorchSharp.Modules;
using TorchSharp.Utils;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>The addresses of a model's parameters and buffers when a step was captured.</summary>
/// <remarks>
/// Every step checks all of them, so the check must cost next to nothing. Modules are therefore found once, and their contents are read
/// from their own dictionaries: TorchSharp's enumerations allocate several objects per module.
/// </remarks>
internal sealed class CapturedWeights
{
    private readonly List<Node> _nodes = [];

    internal CapturedWeights(nn.Module model) => Add(model, "", new HashSet<nn.Module>(ReferenceEqualityComparer.Instance));

    /// <summary>The name of a parameter or buffer that has moved, or of a module whose contents differ; null if there is none.</summary>
    internal string? FindMoved()
    {
        foreach (Node node in _nodes)
        {
            if (node.FindMoved() is string name)
            {
                return name;
            }
        }

        return null;
    }

    private void Add(nn.Module module, string path, HashSet<nn.Module> seen)
    {
        if (seen.Add(module))
        {
            Node node = new(module, path);
            _nodes.Add(node);
            foreach ((string name, nn.Module child) in Named(module))
            {
                Add(child, $"{path}{name}.", seen);
            }
        }
    }

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_internal_params")]
    private static extern ref OrderedDict<string, Parameter?> ParametersOf(nn.Module module);

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_internal_buffers")]
    private static extern ref OrderedDict<string, (Tensor?, bool)> BuffersOf(nn.Module module);

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_internal_submodules")]
    private static extern ref OrderedDict<string, nn.Module> ChildrenOf(nn.Module module);

    // A list of modules registers its modules once; modules added afterwards run all the same.
    private static IEnumerable<(string Name, nn.Module Child)> Named(nn.Module module) =>
        module is IEnumerable<nn.Module> list ? list.Select((child, i) => ($"{i}", child)) : module.named_children();

    private static unsafe nint AddressOf(Tensor? tensor) => tensor is null or { IsInvalid: true } ? 0 : (nint)TensorAccess.Pointer(tensor);

    /// <summary>One module and its contents.</summary>
    private sealed class Node
    {
        private readonly string _path;
        private readonly OrderedDict<string, Parameter?> _parameters;
        private readonly OrderedDict<string, (Tensor? Tensor, bool)> _buffers;
        private readonly nint[] _addresses; // of the parameters, then of the buffers
        private readonly nn.Module[] _children;
        private readonly OrderedDict<string, nn.Module> _registered;
        private readonly nn.Module? _container; // whose children are not registered, or not only

        internal Node(nn.Module module, string path)
        {
            (_path, _parameters, _buffers, _registered) = (path, ParametersOf(module), BuffersOf(module), ChildrenOf(module));
            _addresses = new nint[_parameters.Count + _buffers.Count];
            for (int i = 0; i < _addresses.Length; i++)
            {
                _addresses[i] = AddressOf(Held(i).Tensor);
            }

            _children = [.. Named(module).Select(entry => entry.Child)];
            _container = _children.Length != _registered.Count || module is IEnumerable<nn.Module> ? module : null;
        }

        internal string? FindMoved()
        {
            if (_parameters.Count + _buffers.Count != _addresses.Length || !HasSameChildren())
            {
                return _path.TrimEnd('.');
            }

            for (int i = 0; i < _addresses.Length; i++)
            {
                (string name, Tensor? tensor) = Held(i);
                if (AddressOf(tensor) != _addresses[i])
                {
                    return _path + name;
                }
            }

            return null;
        }

        private bool HasSameChildren()
        {
            if (_container is not null)
            {
                return Named(_container).Select(entry => entry.Child).SequenceEqual(_children);
            }

            bool same = _registered.Count == _children.Length;
            for (int i = 0; same && i < _children.Length; i++)
            {
                same = ReferenceEquals(_registered[i].Item2, _children[i]);
            }

            return same;
        }

        private (string Name, Tensor? Tensor) Held(int index)
        {
            if (index < _parameters.Count)
            {
                return _parameters[index];
            }

            (string name, (Tensor? tensor, _)) = _buffers[index - _parameters.Count];
            return (name, tensor);
        }
    }
}
