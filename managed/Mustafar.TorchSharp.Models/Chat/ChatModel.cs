using Mustafar.Models.Checkpoint;
using Mustafar.Models.Generation;

namespace Mustafar.Models.Chat;

/// <summary>A language model with its chat template.</summary>
public sealed class ChatModel
{
    private readonly ChatEncoder _encoder;

    /// <summary>Combines a loaded model with a template.</summary>
    /// <param name="language">The model, with its tokenizer.</param>
    /// <param name="template">Its chat template.</param>
    /// <exception cref="UnsupportedModelException">The template can't be rendered, or the tokenizer lacks a token of it.</exception>
    public ChatModel(LanguageModel language, ChatTemplate template)
    {
        ArgumentNullException.ThrowIfNull(language);
        ArgumentNullException.ThrowIfNull(template);
        Language = language;
        _encoder = new ChatEncoder(language.Tokenizer, template);
        StopTokens = _encoder.EndOfReply is int end ? new HashSet<int>([.. language.StopTokens, end]) : language.StopTokens;
    }

    /// <summary>The model.</summary>
    public LanguageModel Language { get; }

    /// <summary>Tokens that end a reply: those of the checkpoint, and the one that the template writes after a reply.</summary>
    public IReadOnlySet<int> StopTokens { get; }

    /// <summary>The ids of a chat and of the beginning of the model's reply.</summary>
    /// <remarks>Special tokens in a message are plain text: they don't become tokens.</remarks>
    /// <param name="turns">The chat.</param>
    /// <param name="variables">Further variables for the template: see <see cref="ChatTemplate.Render"/>.</param>
    /// <param name="cancellationToken">Cancels the call.</param>
    /// <exception cref="ArgumentException">The template refuses the turns or a variable, or the chat doesn't fit into the
    /// model.</exception>
    /// <exception cref="UnsupportedModelException">The template can't be rendered.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    public List<int> Encode(
        IReadOnlyList<ChatTurn> turns, IReadOnlyDictionary<string, object?>? variables = null, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(turns);
        List<int> ids = _encoder.Encode(turns, variables, cancellationToken);
        TokenIds.Check(ids, Language.Model.Config);
        return ids;
    }
}
