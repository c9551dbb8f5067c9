using Microsoft.Extensions.Logging;
using static TorchSharp.torch;

namespace Mustafar.Extensions.AI;

/// <summary>How a <see cref="LlamaChatClient"/> runs its model.</summary>
public sealed record LlamaChatClientOptions
{
    private readonly int _maxConversations = 1;
    private readonly int _maxOutputTokens = 1024;

    /// <summary>How caches prune and compress; they are dense if null.</summary>
    public MustafarOptions? Cache { get; init; } = new();

    /// <summary>Type of the weights and of the caches; the checkpoint's if null.</summary>
    public ScalarType? DType { get; init; }

    /// <summary>Where the model runs; the CPU if null.</summary>
    public Device? Device { get; init; }

    /// <summary>What is taken in place of the checkpoint's default chat template: llama3, mistral, chatml, a named template of the checkpoint,
    /// or the path of a Jinja file; the checkpoint's if null.</summary>
    public string? ChatTemplate { get; init; }

    /// <summary>Where the client logs: when it has loaded, and of each request its tokens, its time, the cache's bytes, and why it failed.
    /// What is said in a chat is not logged. Nothing is if null, the default.</summary>
    public ILoggerFactory? LoggerFactory { get; init; }

    /// <summary>Whether what a request has in common with a former one, from the beginning on, is not read again. Default true.</summary>
    /// <remarks>
    /// A reply depends on the messages alone, but for this: what a compressed cache holds was pruned, and the rest of the prompt sees it so;
    /// where all is read anew, a prompt sees itself dense, and is pruned then. Of a dense cache the numbers differ by rounding. With false
    /// a request is always read anew, and equal requests have equal replies (with a seed, where tokens are drawn).
    /// </remarks>
    public bool PrefixCaching { get; init; } = true;

    /// <summary>Conversations whose caches are kept to be gone on with. Default 1. Without <see cref="PrefixCaching"/> none is.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public int MaxConversations
    {
        get => _maxConversations;
        init => _maxConversations = value > 0
            ? value
            : throw new ArgumentOutOfRangeException(nameof(MaxConversations), value, "Expected at least one conversation.");
    }

    /// <summary>Longest reply where a request doesn't say, in tokens. Default 1024.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public int MaxOutputTokens
    {
        get => _maxOutputTokens;
        init => _maxOutputTokens = value > 0
            ? value
            : throw new ArgumentOutOfRangeException(nameof(MaxOutputTokens), value, "Expected at least one token.");
    }
}
