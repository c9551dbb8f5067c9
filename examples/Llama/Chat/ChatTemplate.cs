using Mustafar.Examples.Llama.Checkpoint;
using Mustafar.Examples.Llama.Tokenizer;

namespace Mustafar.Examples.Llama.Chat;

/// <summary>How a family of models wants a chat written down.</summary>
/// <remarks>
/// A chat is written bit by bit: each call continues what the calls before wrote and the model answered, so that one cache can serve
/// the whole chat.
/// </remarks>
public abstract class ChatTemplate
{
    /// <summary>Its name, one of <see cref="ChatTemplates.Names"/>.</summary>
    public abstract string Name { get; }

    /// <summary>Markup that ends what the model says; the model generates it, or it is written in its place.</summary>
    public abstract string EndOfReply { get; }

    /// <summary>The ids of new turns and of the beginning of the model's reply.</summary>
    /// <param name="tokenizer">The model's tokenizer.</param>
    /// <param name="turns">The whole chat.</param>
    /// <param name="from">
    /// The first new turn. The one before it is a reply of the model of which everything but <see cref="EndOfReply"/> was written.
    /// </param>
    /// <exception cref="ArgumentException">The turns are not in an order that the template has.</exception>
    public List<int> Encode(TextTokenizer tokenizer, IReadOnlyList<ChatTurn> turns, int from = 0)
    {
        ArgumentNullException.ThrowIfNull(tokenizer);
        ArgumentNullException.ThrowIfNull(turns);
        ArgumentOutOfRangeException.ThrowIfNegative(from);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(from, turns.Count);
        if (turns.Skip(1).Any(turn => turn.Speaker == ChatSpeaker.System))
        {
            throw new ArgumentException("Expected what the system says in front of all other turns.", nameof(turns));
        }

        if (turns[^1].Speaker != ChatSpeaker.User)
        {
            throw new ArgumentException(
                $"Expected a chat that ends with a turn of the user, but it is the {turns[^1].Speaker}'s.", nameof(turns));
        }

        List<TextPart> parts = [];
        if (from > 0)
        {
            if (turns[from - 1].Speaker != ChatSpeaker.Assistant)
            {
                throw new ArgumentException(
                    $"Expected a reply in front of turn {from}, but it is the {turns[from - 1].Speaker}'s.", nameof(from));
            }

            parts.Add(new TextPart(EndOfReply + AfterReply, IsMarkup: true));
        }

        Write(parts, turns, from);
        List<int> ids = tokenizer.Encode(parts);
        return from == 0 && BeginsText ? [.. tokenizer.Prefix, .. ids] : ids;
    }

    /// <summary>Checks that a tokenizer has the tokens that the template is made of.</summary>
    /// <exception cref="UnsupportedModelException">One is missing.</exception>
    internal void RequireTokens(TextTokenizer tokenizer, string path)
    {
        foreach (string token in Tokens)
        {
            if (tokenizer.FindAddedToken(token) is null)
            {
                throw new UnsupportedModelException($"a chat template with '{token}' is not supported by a tokenizer that lacks it.", path);
            }
        }
    }

    /// <summary>Whether a chat begins with what the tokenizer puts in front of a text, beside what the template writes.</summary>
    private protected virtual bool BeginsText => false;

    /// <summary>Markup behind <see cref="EndOfReply"/>.</summary>
    private protected virtual string AfterReply => "";

    /// <summary>Added tokens that the template is made of.</summary>
    private protected abstract IReadOnlyList<string> Tokens { get; }

    /// <summary>Writes turns from a given one on, and the beginning of a reply.</summary>
    private protected abstract void Write(List<TextPart> parts, IReadOnlyList<ChatTurn> turns, int from);
}
