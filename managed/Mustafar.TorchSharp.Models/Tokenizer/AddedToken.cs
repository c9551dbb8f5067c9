namespace Mustafar.Models.Tokenizer;

/// <summary>A token that is found in a text before anything else.</summary>
/// <param name="Id">Its id.</param>
/// <param name="Content">Its text.</param>
/// <param name="IsSpecial">Whether it is omitted from decoded text.</param>
/// <param name="IsNormalized">Whether it is found in normalised text, in the form that the normalizer gives it, and not in the original
/// text.</param>
internal sealed record AddedToken(int Id, string Content, bool IsSpecial, bool IsNormalized = false);
