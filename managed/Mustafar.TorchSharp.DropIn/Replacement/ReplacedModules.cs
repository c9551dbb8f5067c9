using System.Diagnostics.CodeAnalysis;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>The replaced modules of a model, and how to restore its own.</summary>
internal sealed class ReplacedModules
{
    private static readonly string[] Projections = ["q_proj", "k_proj", "v_proj"];

    private readonly nn.Module _model;
    private readonly Dictionary<nn.Module, nn.Module> _originals = new(ReferenceEqualityComparer.Instance); // by what replaces them

    /// <summary>Replaces modules of a model.</summary>
    /// <param name="model">The model.</param>
    /// <param name="modules">All of its modules.</param>
    /// <param name="replacementOf">The implementation that replaces a module; null if it stays.</param>
    /// <exception cref="ArgumentException">The model itself would have to be replaced.</exception>
    /// <exception cref="InvalidOperationException">The model's attention is already replaced.</exception>
    /// <exception cref="NotSupportedException">No module is attention, or a class to replace is sealed. The model is unchanged.</exception>
    [RequiresDynamicCode("Emits a subclass of the model's attention class.")]
    [RequiresUnreferencedCode("Reads the model's fields by reflection.")]
    internal ReplacedModules(nn.Module model, IReadOnlyList<nn.Module> modules, Func<nn.Module, ModuleReplacement?> replacementOf)
    {
        _model = model;
        Dictionary<nn.Module, nn.Module> replacements = new(ReferenceEqualityComparer.Instance);
        foreach (nn.Module module in modules)
        {
            if (module is IReplacedModule)
            {
                throw new InvalidOperationException("The model's attention is already replaced; dispose that attachment first.");
            }

            ModuleReplacement? replacement = replacementOf(module);
            if (replacement is null || (ReferenceEquals(module, model) && replacement is not AttentionLayer))
            {
                continue;
            }

            if (ReferenceEquals(module, model))
            {
                throw new ArgumentException(
                    $"{module.GetType()} is itself an attention module, with no parent in which it could be replaced; pass the whole model.",
                    nameof(model));
            }

            nn.Module replaced = ReplacementType.Replace(replacement);
            replacements.Add(module, replaced);
            _originals.Add(replaced, module);
        }

        if (!Of<AttentionLayer>().Any())
        {
            throw new NotSupportedException(
                $"No registered module of {model.GetType()} is attention that an adapter can read; pass an {nameof(AttentionAdapter)} for its class.");
        }

        try
        {
            ModuleTree.Exchange(model, replacements);
            JoinProjections();
        }
        catch
        {
            SeparateProjections();
            ModuleTree.Exchange(model, _originals);
            throw;
        }
    }

    /// <summary>The replacements of one kind, in the model's order.</summary>
    internal IEnumerable<T> Of<T>()
        where T : ModuleReplacement => _originals.Keys.Select(module => ((IReplacedModule)module).Replacement).OfType<T>();

    /// <summary>Restores the model's own modules, the same objects in the same places.</summary>
    [RequiresUnreferencedCode("Reads the model's fields by reflection.")]
    internal void PutBack()
    {
        SeparateProjections();
        foreach ((nn.Module replacement, nn.Module original) in _originals)
        {
            // What was assigned to the module's fields in the meantime is kept.
            FieldCopy.Copy(original.GetType(), replacement, original);
        }

        ModuleTree.Exchange(_model, _originals);
    }

    // If linear layers run in the data type of their weights; with the others' conversions the product would differ.
    private void JoinProjections()
    {
        foreach (nn.Module module in _originals.Keys)
        {
            if (((IReplacedModule)module).Replacement is AttentionLayer layer)
            {
                layer.Projections = JointLinear.TryMake(Array.ConvertAll(Projections, name => Reflected.Get(module, name) as nn.Module));
            }
        }
    }

    private void SeparateProjections()
    {
        foreach (AttentionLayer layer in Of<AttentionLayer>())
        {
            layer.Projections?.Dispose();
            layer.Projections = null;
        }
    }
}
