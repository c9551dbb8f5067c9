using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>
/// What stands behind a module that keeps the cache of the current call in a field: its calls wait for one another, for a second
/// thread would exchange the cache in the middle of the first one's call.
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
