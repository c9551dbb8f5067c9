using Mustafar.Examples.Llama.Checkpoint;
using Mustafar.Examples.Llama.Generation;

namespace Mustafar.Examples.Llama.Chat;

/// <summary>A language model that knows how chats are written down.</summary>
/// <param name="Language">The model.</param>
/// <param name="Template">How its chats are written down.</param>
public sealed record ChatModel(LanguageModel Language, ChatTemplate Template)
{
    /// <summary>Takes a loaded model with the template of its checkpoint.</summary>
    /// <param name="language">The model.</param>
    /// <param name="template">One of <see cref="ChatTemplates.Names"/>; the checkpoint's if null.</param>
    /// <exception cref="UnsupportedModelException">The checkpoint has no template, or one that isn't known.</exception>
    public static ChatModel Of(LanguageModel language, string? template = null)
    {
        ArgumentNullException.ThrowIfNull(language);
        return new ChatModel(language, ChatTemplates.Find(language.Directory, language.Tokenizer, template));
    }
}
