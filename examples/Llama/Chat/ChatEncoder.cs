using System.Text.RegularExpressions;
using Mustafar.Examples.Llama.Checkpoint;
using Mustafar.Examples.Llama.Tokenizer;

namespace Mustafar.Examples.Llama.Chat;

/// <summary>Chats as ids: what the template writes, in which no message can forge a mark.</summary>
/// <remarks>
/// The texts of special tokens, and of those that the template sets around turns, are text in a message: they don't become tokens. So a
/// user can't end a turn and begin another. Other added tokens count, such as those of calls of tools, and in what the assistant said those
/// that it generated itself.
/// </remarks>
internal sealed class ChatEncoder
{
    // Private use: marks are put around texts of tokens before the template sees them, and taken out of what it writes.
    private const char FirstMark = '\uE000';
    private const char LastMark = '\uF8FF';

    // Not in any template.
    private const string Sample = "Zq7";

    private readonly TextTokenizer _tokenizer;
    private readonly ChatTemplate _template;
    private readonly Regex? _marksOfTurns;
    private readonly Regex? _specialTokens;

    /// <summary>Takes a template for a tokenizer.</summary>
    /// <exception cref="UnsupportedModelException">The template can't be rendered, or the tokenizer lacks a token of it.</exception>
    public ChatEncoder(TextTokenizer tokenizer, ChatTemplate template)
    {
        _tokenizer = tokenizer;
        _template = template;
        foreach (string token in template.RequiredTokens)
        {
            if (tokenizer.FindAddedToken(token) is null)
            {
                throw new UnsupportedModelException(
                    $"it has '{token}', which the checkpoint's tokenizer lacks. {ChatTemplateFiles.HowToChoose}", template.Origin);
            }
        }

        ChatTurn user = new(ChatRoles.User, Sample);
        ChatTurn assistant = new(ChatRoles.Assistant, Sample);

        // One turn must be possible, unless the template says otherwise itself.
        string chats = TryRender([user]) + TryRender([user, assistant, user]) + TryRender([new ChatTurn(ChatRoles.System, Sample), user]);
        HashSet<int> written = [.. tokenizer.Encode(chats, addSpecialTokens: false)];
        _marksOfTurns = TextTokenizer.AnyOf(tokenizer.AddedTokens.Where(token => token.IsSpecial || written.Contains(token.Id)).Select(token => token.Content));
        _specialTokens = TextTokenizer.AnyOf(tokenizer.AddedTokens.Where(token => token.IsSpecial).Select(token => token.Content));
        EndOfReply = FindEndOfReply([user, assistant]);
    }

    /// <summary>The token that the template writes behind a reply, or null if there is none.</summary>
    public int? EndOfReply { get; }

    /// <summary>The ids of a chat and of the beginning of the model's reply.</summary>
    /// <param name="turns">The chat.</param>
    /// <param name="variables">Further variables for the template.</param>
    /// <param name="cancellationToken">Stops the work.</param>
    /// <exception cref="ArgumentException">The template refuses the turns or a variable.</exception>
    /// <exception cref="UnsupportedModelException">The template can't be rendered.</exception>
    public List<int> Encode(
        IReadOnlyList<ChatTurn> turns, IReadOnlyDictionary<string, object?>? variables = null, CancellationToken cancellationToken = default)
    {
        char mark = UnusedCharacter(turns);
        ChatTurn[] marked = [.. turns.Select(turn => turn with
        {
            Content = Mark(turn.Role, turn.Content, mark),
            ReasoningContent = turn.ReasoningContent is string text ? Mark(turn.Role, text, mark) : null,
        })];
        string written = _template.Render(marked, variables: variables, cancellationToken: cancellationToken);
        return _tokenizer.Encode(Parts(written, mark), cancellationToken);
    }

    private static char UnusedCharacter(IReadOnlyList<ChatTurn> turns)
    {
        for (char mark = FirstMark; mark <= LastMark; mark++)
        {
            if (!turns.Any(turn => turn.Content.Contains(mark) || (turn.ReasoningContent?.Contains(mark) ?? false)))
            {
                return mark;
            }
        }

        throw new ArgumentException("Expected messages that leave a character for private use free, but they have all of them.", nameof(turns));
    }

    private string Mark(string role, string text, char mark) =>
        (role == ChatRoles.Assistant ? _specialTokens : _marksOfTurns)?.Replace(text, $"{mark}$0{mark}") ?? text;

    // A template may have cut a text between its marks: then they only go.
    private List<TextPart> Parts(string written, char mark)
    {
        List<TextPart> parts = [];
        int start = 0;
        for (int at = written.IndexOf(mark); at >= 0; at = written.IndexOf(mark, start))
        {
            parts.Add(new TextPart(written[start..at], IsMarkup: true));
            int end = written.IndexOf(mark, at + 1);
            bool isToken = end > at && _marksOfTurns!.Match(written, at + 1, end - at - 1) is { Success: true } match && match.Length == end - at - 1;
            if (isToken)
            {
                parts.Add(new TextPart(written[(at + 1)..end], IsMarkup: false));
            }

            start = isToken ? end + 1 : at + 1;
        }

        parts.Add(new TextPart(written[start..], IsMarkup: true));
        return parts;
    }

    private string TryRender(IReadOnlyList<ChatTurn> turns, bool addGenerationPrompt = true)
    {
        try
        {
            return _template.Render(turns, addGenerationPrompt);
        }
        catch (ArgumentException)
        {
            // It has other orders of turns.
            return "";
        }
    }

    // What follows the reply, once white space is left out.
    private int? FindEndOfReply(ChatTurn[] chat)
    {
        string text = TryRender(chat, addGenerationPrompt: false);
        int reply = text.LastIndexOf(Sample, StringComparison.Ordinal);
        if (reply < 0)
        {
            return null;
        }

        List<int> ids = _tokenizer.Encode(text[(reply + Sample.Length)..].TrimStart(), addSpecialTokens: false);
        return ids.Count > 0 && _tokenizer.AddedTokens.Any(token => token.Id == ids[0]) ? ids[0] : null;
    }
}
