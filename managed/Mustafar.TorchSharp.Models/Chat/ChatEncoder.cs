using System.Text;
using System.Text.RegularExpressions;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Tokenizer;

namespace Mustafar.Models.Chat;

/// <summary>Encodes chats as ids: the template's output, in which no message can forge a marker of turns.</summary>
/// <remarks>
/// Inside a message, special tokens and those that the template puts around turns are plain text: they don't become tokens. So a user can't
/// end a turn and begin another. Other added tokens keep their meaning, such as those of tool calls; in the assistant's turns, so do those
/// that it generated itself.
/// </remarks>
internal sealed class ChatEncoder
{
    // A private-use character that occurs in no message is inserted into the texts of tokens, after the first letter, before the template
    // sees them. The template's output is cut there, and no token spans a cut, however the template takes a message apart.
    private const char FirstMark = '\uE000';
    private const char LastMark = '\uF8FF';

    // Occurs in no template.
    private const string Sample = "Zq7";

    private readonly TextTokenizer _tokenizer;
    private readonly ChatTemplate _template;
    private readonly Regex? _tokensOfTurns;
    private readonly Regex? _specialTokens;

    /// <summary>Combines a template with a tokenizer.</summary>
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
        ChatTurn system = new(ChatRoles.System, Sample);
        string chats = Probe([user], mustRender: true) + Probe([user, assistant, user]) + Probe([system, user]);
        HashSet<int> written = TokensIn(chats);
        _tokensOfTurns = AnyOf(tokenizer.AddedTokens.Where(token => token.IsSpecial || written.Contains(token.Id)));
        _specialTokens = AnyOf(tokenizer.AddedTokens.Where(token => token.IsSpecial));
        EndOfReply = FindEndOfReply([user, assistant]);
    }

    /// <summary>The token that the template writes after a reply, or null if there is none.</summary>
    public int? EndOfReply { get; }

    /// <summary>The ids of a chat and of the beginning of the model's reply.</summary>
    /// <param name="turns">The chat.</param>
    /// <param name="variables">Further variables for the template. They don't come from users: texts of tokens in them become
    /// tokens.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    /// <exception cref="ArgumentException">The template refuses the turns or a variable.</exception>
    /// <exception cref="UnsupportedModelException">The template can't be rendered.</exception>
    public List<int> Encode(
        IReadOnlyList<ChatTurn> turns, IReadOnlyDictionary<string, object?>? variables = null, CancellationToken cancellationToken = default)
    {
        char mark = UnusedCharacter(turns);
        ChatTurn[] marked = [.. turns.Select(turn => turn with
        {
            Content = Marked(turn.Content, turn.Role, mark),
            ReasoningContent = turn.ReasoningContent is string text ? Marked(text, turn.Role, mark) : null,
        })];
        string written = _template.Render(marked, variables: variables, cancellationToken: cancellationToken);
        return _tokenizer.Encode(written.Split(mark), cancellationToken);
    }

    private static char UnusedCharacter(IReadOnlyList<ChatTurn> turns)
    {
        HashSet<char> used = [.. turns.SelectMany(turn => turn.Content + turn.ReasoningContent)];
        for (char mark = FirstMark; mark <= LastMark; mark++)
        {
            if (!used.Contains(mark))
            {
                return mark;
            }
        }

        throw new ArgumentException(
            "Expected messages that leave a private-use character (U+E000 to U+F8FF) unused, but they use all of them.", nameof(turns));
    }

    private HashSet<int> TokensIn(string chats)
    {
        try
        {
            return [.. _tokenizer.Encode([chats])];
        }
        catch (ArgumentException exception)
        {
            // A token of the tokenizer that the model lacks.
            string message = exception.Message.Split(" (Parameter ")[0];
            throw new UnsupportedModelException(
                $"the chat template does not fit the model. {message} {ChatTemplateFiles.HowToChoose}", _template.Origin, exception);
        }
    }

    // White space does not mark a turn, and a single letter can't be cut.
    private static Regex? AnyOf(IEnumerable<AddedToken> tokens) => TextTokenizer.AnyOf(
        tokens.Select(token => token.Content).Where(text => !string.IsNullOrWhiteSpace(text) && text.EnumerateRunes().Count() > 1));

    // Overlapping tokens are all cut.
    private string Marked(string text, string role, char mark)
    {
        Regex? tokens = role == ChatRoles.Assistant ? _specialTokens : _tokensOfTurns;
        StringBuilder marked = new();
        int start = 0;
        for (Match? match = tokens?.Match(text); match is { Success: true }; match = tokens!.Match(text, start))
        {
            int end = match.Index + (char.IsSurrogate(text[match.Index]) ? 2 : 1);
            marked.Append(text, start, end - start).Append(mark);
            start = end;
        }

        return marked.Append(text, start, text.Length - start).ToString();
    }

    // Empty if the template does not support such a chat. A template that can't be rendered at all is reported at once.
    private string Probe(IReadOnlyList<ChatTurn> turns, bool addGenerationPrompt = true, bool mustRender = false)
    {
        try
        {
            return _template.Render(turns, addGenerationPrompt);
        }
        catch (Exception exception) when (exception is ArgumentException || (exception is UnsupportedModelException && !mustRender))
        {
            return "";
        }
    }

    // What follows the reply, apart from white space.
    private int? FindEndOfReply(ChatTurn[] chat)
    {
        string text = Probe(chat, addGenerationPrompt: false);
        int reply = text.LastIndexOf(Sample, StringComparison.Ordinal);
        if (reply < 0)
        {
            return null;
        }

        List<int> ids = _tokenizer.Encode([text[(reply + Sample.Length)..].TrimStart()]);
        return ids.Count > 0 && _tokenizer.AddedTokens.Any(token => token.Id == ids[0]) ? ids[0] : null;
    }
}
