using Mustafar.Models.Generation;

namespace Mustafar.Models.Chat;

/// <summary>Why a reply ended.</summary>
public enum ReplyEnd
{
    /// <summary>The model, or a stop sequence, ended it.</summary>
    Stop,

    /// <summary>It reached the maximum number of tokens, or the text the model's context length.</summary>
    Length,

    /// <summary>The caller stopped reading.</summary>
    Interrupted,
}

/// <summary>The usage of a reply.</summary>
/// <param name="CachedTokens">Tokens of the prompt that were not read, since the cache held them.</param>
/// <param name="NewTokens">Tokens of the prompt that were read.</param>
/// <param name="ReplyTokens">Tokens generated, including one that ended the reply.</param>
/// <param name="End">Why it ended.</param>
public readonly record struct ReplyUsage(int CachedTokens, int NewTokens, int ReplyTokens, ReplyEnd End);

/// <summary>A reply while it is generated.</summary>
/// <param name="model">The model that replies.</param>
/// <param name="cache">Its cache.</param>
/// <param name="prompt">The chat as ids.</param>
/// <param name="stopSequences">Texts that end the reply and are not part of it.</param>
internal sealed class Reply(ChatModel model, PromptCache cache, IReadOnlyList<int> prompt, IReadOnlyList<string> stopSequences)
{
    /// <summary>Its usage, once it has ended.</summary>
    public ReplyUsage Usage { get; private set; }

    /// <summary>Generates it.</summary>
    /// <param name="sampler">Chooses tokens.</param>
    /// <param name="maxTokens">Maximum number of tokens to generate.</param>
    /// <param name="cancellationToken">Cancels before the next token.</param>
    /// <returns>Its parts, each as soon as it is known.</returns>
    public IEnumerable<string> Read(Sampler sampler, int maxTokens, CancellationToken cancellationToken)
    {
        GeneratedText text = new(model.Language.Tokenizer, model.StopTokens, stopSequences, continuesText: false);
        try
        {
            foreach (string part in text.Read(cache.Generate(prompt, sampler, maxTokens, model.StopTokens, cancellationToken)))
            {
                yield return part;
            }
        }
        finally
        {
            // Also if reading stopped in between, or generating failed.
            ReplyEnd end = text.IsStopped ? ReplyEnd.Stop : text.HasEnded ? ReplyEnd.Length : ReplyEnd.Interrupted;
            Usage = new ReplyUsage(cache.ReusedTokens, prompt.Count - cache.ReusedTokens, text.Tokens, end);
        }
    }
}
