namespace Mustafar.Examples.Llama.Tokenizer;

/// <summary>A part of a text to encode.</summary>
/// <param name="Text">The part.</param>
/// <param name="IsMarkup">
/// Whether added tokens in it count. In what a user wrote they must not: it could end its own turn and begin another.
/// </param>
public readonly record struct TextPart(string Text, bool IsMarkup);
