namespace Mustafar.Examples.Llama.Commands;

/// <summary>Files that ship with the program.</summary>
internal static class ShippedFiles
{
    /// <summary>A small trained model.</summary>
    public static string Model => Path.Combine(AppContext.BaseDirectory, "checkpoint", "pyllama-14m");

    /// <summary>Python code that the small model was not trained on.</summary>
    public static string HeldOutText => Path.Combine(AppContext.BaseDirectory, "data", "heldout-python.txt");

    /// <summary>Reads a text file. A byte order mark is not part of the text.</summary>
    /// <exception cref="CommandException">There is no such file, or it can't be read.</exception>
    public static string ReadText(string path)
    {
        if (Directory.Exists(path))
        {
            throw new CommandException($"{path}: expected a file, but it is a directory.");
        }

        try
        {
            // Not only regular files: text may come from a pipe.
            return File.ReadAllText(path);
        }
        catch (Exception exception) when (exception is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new CommandException($"{path}: the file doesn't exist.");
        }
        catch (Exception exception) when (exception is UnauthorizedAccessException or IOException)
        {
            throw new CommandException($"{path}: {exception.Message}");
        }
    }

    /// <summary>Reads a text file of several documents, separated by lines with a form feed, as one text.</summary>
    /// <exception cref="CommandException">There is no such file.</exception>
    public static string ReadDocuments(string path) => ReadText(path).Replace("\n\f\n", "\n", StringComparison.Ordinal);

    /// <summary>Makes something from a text; an error about the text names the file.</summary>
    /// <param name="path">The file that the text came from.</param>
    /// <param name="make">Makes it; an exception for a parameter <c>text</c> is about the text.</param>
    /// <exception cref="CommandException">The text is not usable.</exception>
    public static T OfText<T>(string path, Func<T> make)
    {
        try
        {
            return make();
        }
        catch (ArgumentException exception) when (exception.ParamName == "text")
        {
            throw new CommandException($"{path}: {exception.Message.Split(" (Parameter ")[0]}");
        }
    }
}
