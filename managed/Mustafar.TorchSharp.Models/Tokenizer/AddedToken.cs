namespace Mustafar.Models.Tokenizer;

/// <summary>A token with a meaning of its own, which is found in a text before anything else.</summary>
/// <param name="Id">Its id.</param>
/// <param name="Content">Its text.</param>
/// <param name="IsSpecial">Whether it is left out of decoded text.</param>
/// <param name="IsNormalized">Whether it is found, as the normalizer writes it, in normalised text, not in the text as it is.</param>
internal sealed record AddedToken(int Id, string Content, bool IsSpecial, bool IsNormalized = false);
