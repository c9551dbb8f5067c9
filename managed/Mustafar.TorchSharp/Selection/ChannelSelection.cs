using static TorchSharp.torch;

namespace Mustafar;

/// <summary>How the channels that a cache keeps of keys or values are chosen, how many being <see cref="MustafarOptions"/>' sparsity; or what is
/// stored in place of all of them.</summary>
/// <remarks>Objects do not change, and so are safe from any thread. Two of one name are the same to a saved cache.</remarks>
public abstract class ChannelSelection
{
    private protected ChannelSelection(string name, SelectionRule rule, Func<SelectionInput, Tensor>? function = null)
    {
        ArgumentException.ThrowIfNullOrWhiteSpace(name);
        if (name.Any(c => char.IsWhiteSpace(c) || c is '=' or ',' or ';'))
        {
            throw new ArgumentException($"Expected a name without white space, '=', ',' and ';', but got '{name}'.", nameof(name));
        }

        (Name, Rule, Function) = (name, rule, function);
    }

    /// <summary>Its name in settings, on command lines and in the files of saved caches.</summary>
    public string Name { get; }

    /// <summary>Whether it needs the queries of the tokens that are added: tokens can't come without then.</summary>
    public bool NeedsQueries => Rule is SelectionRule.OutputAware or SelectionRule.StructuredKeys or SelectionRule.PerChannelOutputAware;

    internal SelectionRule Rule { get; }

    internal Func<SelectionInput, Tensor>? Function { get; }

    /// <summary>Whether each group of tokens gets a mask of its own when it is compressed, by operations on its tokens.</summary>
    internal bool MakesMasks => IsPerChannel || Rule is SelectionRule.Scores or SelectionRule.Mask;

    /// <summary>Whether the tokens of each channel are ranked, and not the channels of each token.</summary>
    internal bool IsPerChannel => Rule is SelectionRule.PerChannel or SelectionRule.PerChannelOutputAware;

    /// <summary>Whether tokens are rewritten when they are compressed, and all channels kept.</summary>
    internal bool Rewrites => Rule == SelectionRule.Rewritten;

    /// <summary>Whether tokens may keep different numbers of channels.</summary>
    internal bool IsUneven => IsPerChannel || Rule == SelectionRule.Mask;

    /// <summary>Its name.</summary>
    public sealed override string ToString() => Name;

    private protected static T Find<T>(string name, string parameter, IReadOnlyList<T> all)
        where T : ChannelSelection
    {
        ArgumentNullException.ThrowIfNull(name, parameter);
        return all.FirstOrDefault(selection => selection.Name == name)
            ?? throw new ArgumentException($"Expected one of {string.Join(", ", all)}, but got '{name}'.", parameter);
    }
}

internal enum SelectionRule
{
    Magnitude,
    OutputAware,
    StructuredKeys,
    StructuredValues,
    PerChannel,
    PerChannelOutputAware,
    Scores,
    Mask,
    Rewritten,
}
