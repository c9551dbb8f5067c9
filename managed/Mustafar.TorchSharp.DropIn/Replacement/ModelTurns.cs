using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>
/// The implementation of a module that keeps the cache of the current call in a field: its calls run one after another, since a second
/// thread would replace the cache in the middle of the first one's call.
/// </summary>
internal sealed class ModelTurns(nn.Module original) : ModuleReplacement(original)
{
    private readonly object _turn = new();

    internal override object? Forward(IReplacedModule module, object?[] arguments)
    {
        lock (_turn)
        {
            return module.CallOriginal(arguments);
        }
    }
}
