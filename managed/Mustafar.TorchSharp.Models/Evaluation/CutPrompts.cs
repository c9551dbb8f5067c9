using Mustafar.Models.Chat;
using Mustafar.Models.Generation;

namespace Mustafar.Models.Evaluation;

/// <summary>Prompts as LongBench's published scripts build them: one that is too long loses its middle, and a chat template is
/// applied.</summary>
internal sealed class CutPrompts
{
    private const int CharactersOfToken = 4; // roughly

    private readonly LanguageModel _language;
    private readonly ChatEncoder? _chat;
    private readonly int _answerTokens;
    private readonly string _name;

    /// <summary>Prepares prompts.</summary>
    /// <param name="language">The model.</param>
    /// <param name="template">The chat template; null for none.</param>
    /// <param name="maxPromptTokens">Number of tokens to which longer prompts are cut, not counting the chat template; what the context
    /// leaves if null.</param>
    /// <param name="answerTokens">Maximum number of tokens in an answer.</param>
    /// <param name="name">The task's name, for messages.</param>
    /// <exception cref="ArgumentException">The model's context is too small for any prompt.</exception>
    public CutPrompts(LanguageModel language, ChatTemplate? template, int? maxPromptTokens, int answerTokens, string name)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(maxPromptTokens ?? 2, 2, nameof(maxPromptTokens));
        int room = language.Model.Config.MaxPositions - answerTokens;
        if (room < (maxPromptTokens ?? 2))
        {
            throw new ArgumentException(
                $"Expected at most {room} tokens of a prompt, since the model's context is {language.Model.Config.MaxPositions} and an answer of "
                + $"{name} takes up to {answerTokens}, but got {maxPromptTokens ?? 2}.",
                nameof(maxPromptTokens));
        }

        (_language, MaxTokens, _answerTokens, _name) = (language, maxPromptTokens, answerTokens, name);
        if (template is not null)
        {
            (_chat, TemplateHash) = (new ChatEncoder(language.Tokenizer, template), TextWindows.HashOf(template.Text));
        }

        StopTokens = _chat?.EndOfReply is int end ? new HashSet<int>([.. language.StopTokens, end]) : language.StopTokens;
    }

    /// <summary>Number of tokens to which longer prompts are cut; null for what the context leaves.</summary>
    public int? MaxTokens { get; }

    /// <summary>Identifies the chat template; null without one.</summary>
    public string? TemplateHash { get; }

    /// <summary>Tokens that end an answer.</summary>
    public IReadOnlySet<int> StopTokens { get; }

    /// <summary>The approximate number of tokens in a prompt.</summary>
    public long TokensOf(string prompt) => Math.Min(MaxTokens ?? _language.Model.Config.MaxPositions, prompt.Length / CharactersOfToken);

    /// <summary>The token ids of a prompt. The halves of a cut prompt are decoded to text for the chat template; encoded again, they may
    /// have a few more tokens than before.</summary>
    /// <exception cref="ArgumentException">There is no room for any prompt next to the chat template.</exception>
    public List<int> Encode(string prompt)
    {
        List<int> all = _language.Tokenizer.Encode(prompt);
        int room = _language.Model.Config.MaxPositions - _answerTokens;
        int left = Math.Min(MaxTokens ?? room, room);
        while (true)
        {
            int half = left / 2;
            string text = all.Count <= left ? prompt
                : _language.Tokenizer.Decode(all[..half]) + _language.Tokenizer.Decode(all[^half..]);
            List<int> ids = _chat is null
                ? _language.Tokenizer.Encode(text)
                : _chat.Encode([new ChatTurn(ChatRoles.User, text)], variables: null, CancellationToken.None);
            if (ids.Count <= room)
            {
                return ids;
            }

            left = Math.Min(left, all.Count) - (ids.Count - room);
            if (left < 2)
            {
                throw new ArgumentException(
                    $"Expected a context with room for a prompt beside the chat template and {_answerTokens} tokens of an answer of "
                    + $"{_name}, but the model's is {_language.Model.Config.MaxPositions}.");
            }
        }
    }
}
