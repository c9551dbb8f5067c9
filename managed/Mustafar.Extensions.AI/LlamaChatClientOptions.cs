using Microsoft.Extensions.Logging;
using static TorchSharp.torch;

namespace Mustafar.Extensions.AI;

/// <summary>How a <see cref="LlamaChatClient"/> runs its model.</summary>
public sealed record LlamaChatClientOptions
{
    private readonly int _maxConversations = 1;
    private readonly int _maxOutputTokens = 1024;

    /// <summary>How caches prune and compress; dense caches if null.</summary>
    public MustafarOptions? Cache { get; init; } = new();

    /// <summary>Data type of the weights and the caches; the checkpoint's if null.</summary>
    public ScalarType? DType { get; init; }

    /// <summary>Device of the model; the CPU if null.</summary>
    public Device? Device { get; init; }

    /// <summary>The chat template to use instead of the checkpoint's default: llama3, mistral, chatml, a named template of the checkpoint,
    /// or the path of a Jinja file; the checkpoint's default if null.</summary>
    public string? ChatTemplate { get; init; }

    /// <summary>Receives the client's log: that a model was loaded and, for each request, its tokens, its time, the cache's bytes, and why
    /// it failed. The content of a chat is not logged. Nothing is logged if null, the default.</summary>
    public ILoggerFactory? LoggerFactory { get; init; }

    /// <summary>Whether the prefix that a request shares with an earlier one is not read again. Default true.</summary>
    /// <remarks>
    /// A reply depends only on the messages, with one exception: what a compressed cache already holds was pruned, and the rest of the
    /// prompt attends to it in that form, whereas a prompt that is read in full attends to itself densely before it is pruned. With a dense
    /// cache the results differ only by rounding. If false, every request is read in full, and equal requests get equal replies (with a
    /// seed, if tokens are sampled).
    /// </remarks>
    public bool PrefixCaching { get; init; } = true;

    /// <summary>Number of conversations whose caches are kept. Default 1. Without <see cref="PrefixCaching"/> none are kept.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public int MaxConversations
    {
        get => _maxConversations;
        init => _maxConversations = value > 0
            ? value
            : throw new ArgumentOutOfRangeException(nameof(MaxConversations), value, "Expected at least one conversation.");
    }

    /// <summary>Maximum number of tokens of a reply if a request doesn't set it. Default 1024.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public int MaxOutputTokens
    {
        get => _maxOutputTokens;
        init => _maxOutputTokens = value > 0
            ? value
            : throw new ArgumentOutOfRangeException(nameof(MaxOutputTokens), value, "Expected at least one token.");
    }
}
