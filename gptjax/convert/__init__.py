"""Where else can it go? Models of other libraries, in and out."""
