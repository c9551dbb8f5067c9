using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>The implementation of one replaced module: it handles the calls of its forward.</summary>
internal abstract class ModuleReplacement(nn.Module original)
{
    /// <summary>The module that was replaced.</summary>
    internal nn.Module Original => original;

    /// <summary>Called by the emitted conversions (<c>to</c>), which convert the original: its class shows all of its fields.</summary>
    internal static nn.Module BeforeConversion(IReplacedModule module)
    {
        nn.Module original = module.Replacement.Original;
        FieldCopy.Copy(original.GetType(), module, original);
        return original;
    }

    /// <summary>Copies the fields that a conversion replaced.</summary>
    internal static void AfterConversion(IReplacedModule module)
    {
        nn.Module original = module.Replacement.Original;
        FieldCopy.Copy(original.GetType(), original, module);
    }

    /// <summary>Called by the emitted forward.</summary>
    internal abstract object? Forward(IReplacedModule module, object?[] arguments);
}
