using System.Text;
using System.Text.Json;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Evaluation;

/// <summary>A text with {names}, as in Python's <c>str.format</c>: a doubled brace stands for a single one.</summary>
internal sealed class PromptTemplate
{
    // Texts at even indices, names at odd ones.
    private readonly List<string> _parts;

    private PromptTemplate(List<string> parts) => _parts = parts;

    /// <summary>Reads a template.</summary>
    /// <param name="text">The template.</param>
    /// <param name="place">Its location, for messages.</param>
    /// <exception cref="CheckpointException">A brace is unmatched, or braces enclose something other than a name.</exception>
    public static PromptTemplate Parse(string text, string place)
    {
        List<string> parts = [];
        StringBuilder current = new();
        for (int i = 0; i < text.Length; i++)
        {
            char c = text[i];
            if (c is not ('{' or '}'))
            {
                current.Append(c);
            }
            else if (i + 1 < text.Length && text[i + 1] == c)
            {
                current.Append(c);
                i++;
            }
            else
            {
                int end = c == '{' ? text.IndexOf('}', i) : -1;
                string name = end < 0 ? "" : text[(i + 1)..end];
                if (name.Length == 0 || !name.All(letter => char.IsAsciiLetterOrDigit(letter) || letter == '_'))
                {
                    throw new CheckpointException(
                        $"expected names in braces, such as {{context}}, and other braces doubled, but there is '{text[i..Math.Min(text.Length, i + 20)]}'.",
                        place);
                }

                parts.AddRange([current.ToString(), name]);
                current.Clear();
                i = end;
            }
        }

        parts.Add(current.ToString());
        return new PromptTemplate(parts);
    }

    /// <summary>The text with the values of an object filled in.</summary>
    /// <param name="values">An object with a string for each name.</param>
    /// <param name="place">Its location, for messages.</param>
    /// <exception cref="CheckpointException">There is no string for a name.</exception>
    public string Fill(JsonElement values, string place) => string.Concat(_parts.Select((part, i) =>
        i % 2 == 0 ? part : values.Require(part, JsonValueKind.String, place).GetString()));
}
