using static TorchSharp.torch;

namespace Mustafar;

/// <summary>How a cache selects the channels that it keeps of keys or values, or what it stores in place of all of them.</summary>
/// <remarks>
/// The sparsity in <see cref="MustafarOptions"/> sets the number of channels. Selections are immutable and so safe from any thread. Saved
/// caches know them by name: two of the same name count as equal.
/// </remarks>
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

    /// <summary>Whether it needs the queries of new tokens, so that tokens can't be added without them.</summary>
    public bool NeedsQueries => Rule is SelectionRule.OutputAware or SelectionRule.StructuredKeys or SelectionRule.PerChannelOutputAware;

    internal SelectionRule Rule { get; }

    internal Func<SelectionInput, Tensor>? Function { get; }

    /// <summary>Whether each group of tokens gets its own mask when it is compressed, computed from its tokens.</summary>
    internal bool MakesMasks => IsPerChannel || Rule is SelectionRule.Scores or SelectionRule.Mask;

    /// <summary>Whether the tokens of each channel are ranked instead of the channels of each token.</summary>
    internal bool IsPerChannel => Rule is SelectionRule.PerChannel or SelectionRule.PerChannelOutputAware;

    /// <summary>Whether tokens are rewritten when they are compressed, with all channels kept.</summary>
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
