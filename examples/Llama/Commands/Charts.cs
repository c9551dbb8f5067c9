namespace Mustafar.Examples.Llama.Commands;

/// <summary>Draws pictures of results.</summary>
internal static class Charts
{
    /// <summary>Draws a picture, which a machine without fonts can't: results matter more.</summary>
    /// <param name="name">Its file.</param>
    /// <param name="directory">Where it is written; one that is there is replaced.</param>
    /// <param name="draw">Draws it to a path.</param>
    /// <returns>Why it could not be drawn; null if it was.</returns>
    public static string? Draw(string name, string directory, Action<string> draw)
    {
        try
        {
            draw(Path.Combine(directory, name));
            return null;
        }
        catch (Exception exception) when (exception is not OutOfMemoryException)
        {
            return $"{name} could not be drawn: {exception.Message}";
        }
    }
}
